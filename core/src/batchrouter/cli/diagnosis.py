"""What `doctor` looks at, from the ground up; a broken part ends its own branch alone."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from batchrouter._version import __version__
from batchrouter.cli.examine_router import examine_router
from batchrouter.cli.examine_storage import examine_inbox, examine_runs
from batchrouter.cli.examine_webhooks import examine_webhooks
from batchrouter.cli.finding import Finding, failure
from batchrouter.cli.options import load_settings
from batchrouter.errors import ConfigError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings

_OLDEST_PYTHON: Final = (3, 11)
_EXTRAS: Final = {
    "tables": ("pyarrow", "numpy", "duckdb", "msgspec", "orjson", "xxhash"),
    "server": ("fastapi", "uvicorn", "dbos", "obstore", "cryptography"),
}
_MORE_EXTRAS: Final = {
    "adbc": "adbc_driver_manager",
    "azure": "adlfs",
    "delta": "deltalake",
    "fast": "batchrouter_kernel",
    "gcs": "gcsfs",
    "iceberg": "pyiceberg",
    "otel": "opentelemetry",
    "postgres": "psycopg",
    "s3": "s3fs",
    "sqlite": "adbc_driver_sqlite",
}
_LIBRARIES: Final = ("pydantic", "httpx", "fsspec", "pyarrow", "duckdb", "fastapi", "dbos")


def examine(*, base_url: str | None = None, runs_url: str | None = None) -> Iterator[Finding]:
    """Go through the set-up; never raises for what is wrong with it."""
    yield from _python()
    yield from _extras()
    try:
        settings = load_settings(base_url=base_url, runs_url=runs_url)
    except ConfigError as error:
        yield failure("settings", error)
        return
    yield from _settings(settings)
    yield from examine_router(settings)
    yield from examine_runs(settings)
    yield from examine_inbox(settings)
    yield from examine_webhooks(settings)


def _python() -> Iterator[Finding]:
    told = f"{platform.python_version()} on {platform.system()}, batchrouter {__version__}"
    is_new_enough = sys.version_info >= _OLDEST_PYTHON
    yield (
        Finding("ok", "python", told)
        if is_new_enough
        else Finding("fail", "python", told, "Python 3.11 or newer is needed.")
    )
    yield Finding("ok", "versions", ", ".join(_versions()))


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        if missing:
            needs = "reading and writing tables" if extra == "tables" else "the embedded router"
            yield Finding(
                "warn",
                f"[{extra}]",
                f"not installed ({', '.join(missing)})",
                f"For {needs}: pip install 'batchrouter-core[{extra}]'",
            )
        else:
            yield Finding("ok", f"[{extra}]", "installed")
    more = [extra for extra, module in _MORE_EXTRAS.items() if find_spec(module) is not None]
    yield Finding("ok", "other extras", ", ".join(more) or "none installed")


def _settings(settings: "Settings") -> Iterator[Finding]:
    # The repr masks every secret; defaults are left out.
    given = [
        f"{name}={value!r}"
        for name, value in settings.__repr_args__()
        if name in settings.model_fields_set
    ]
    yield Finding("ok", "settings", ", ".join(given) or "all at their defaults")
    if settings.max_run_usd is None:
        yield Finding(
            "warn",
            "spending",
            "no limit of yours above the jobs' own budgets",
            "BATCHROUTER_MAX_RUN_USD=25 refuses every job that could cost more than that.",
        )
    else:
        yield Finding("ok", "spending", f"no run may cost more than {settings.max_run_usd} USD")
