"""What `doctor` looks at: each part of a set-up gives findings, and a broken one ends its branch.

The key's scopes are tried with requests that cannot buy anything: the router checks the key and
its scope before it finds that the model, the quote or the batch does not exist (contract
section 5 has the order).
"""

import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

from batchrouter._version import __version__
from batchrouter.cli.failures import advice_for, code_of
from batchrouter.cli.options import load_settings
from batchrouter.errors import (
    APIError,
    AuthError,
    BatchrouterError,
    ConfigError,
    NotFoundError,
    StorageError,
)

if TYPE_CHECKING:
    from batchrouter.api.client import Client
    from batchrouter.api.settings import Settings

_OLDEST_PYTHON: Final = (3, 11)
_EXTRAS: Final = {
    "tables": ("pyarrow", "numpy", "duckdb", "msgspec", "orjson", "xxhash"),
    "server": ("fastapi", "uvicorn", "dbos", "obstore", "cryptography"),
}
_SKEW_WARN_S: Final = 5.0
_SKEW_FAIL_S: Final = 120.0
"""A quote lives for 600 s; webhook signatures are good for 300 s (contract sections 3 and 7)."""
_NO_SUCH: Final = "0" * 32

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        told: What was found.
        advice: What to do about it, unless it is well.
        exit_code: What the command exits with when this is the first failure.
    """

    level: Level
    subject: str
    told: str
    advice: str | None = None
    exit_code: int = 2

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON's types."""
        return asdict(self)


def examine(*, base_url: str | None = None, runs_url: str | None = None) -> Iterator[Finding]:
    """Go through the set-up; never raises for what is wrong with it."""
    yield from _python()
    yield from _extras()
    try:
        settings = load_settings(base_url=base_url, runs_url=runs_url)
    except ConfigError as error:
        yield _failure("settings", error)
        return
    yield from _settings(settings)
    yield from _router(settings)
    yield from _runs_folder(settings)
    yield from _inbox(settings)


def _failure(subject: str, error: BatchrouterError, advice: str | None = None) -> Finding:
    return Finding("fail", subject, str(error), advice or advice_for(error), code_of(error))


def _python() -> Iterator[Finding]:
    told = f"{platform.python_version()} on {platform.system()}, batchrouter {__version__}"
    is_new_enough = sys.version_info >= _OLDEST_PYTHON
    yield (
        Finding("ok", "python", told)
        if is_new_enough
        else Finding("fail", "python", told, "Python 3.11 or newer is needed.")
    )


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


def _router(settings: "Settings") -> Iterator[Finding]:
    from batchrouter.api.client import Client  # noqa: PLC0415 - loads httpx

    # One short try each: a doctor does not wait for a dead router to come back.
    impatient = settings.replace(max_attempts=1, timeout_s=min(settings.timeout_s, 10.0))
    try:
        client = Client(impatient)
    except ConfigError as error:
        advice = "For the embedded router: export BATCHROUTER_API_KEY=$(cat DIR/api_key)"
        yield _failure("key", error, advice)
        return
    with client:
        try:
            yield from _clock(client)
        except BatchrouterError as error:
            yield _failure("router", error, _if_not_reached(settings))
            return
        yield from _scopes(client)


def _if_not_reached(settings: "Settings") -> str:
    if "base_url" not in settings.model_fields_set:
        return (
            "BATCHROUTER_BASE_URL is not set, so the hosted API was asked. For the embedded "
            "router:\nbatchrouter serve --data DIR, and BATCHROUTER_BASE_URL=http://127.0.0.1:8765"
        )
    return "Is the router running, and BATCHROUTER_BASE_URL right? batchrouter serve --data DIR"


def _clock(client: "Client") -> Iterator[Finding]:
    asked_at = datetime.now(UTC)
    server_at = client.server_time()
    heard_at = datetime.now(UTC)
    took_ms = (heard_at - asked_at).total_seconds() * 1000
    yield Finding("ok", "router", f"{client.settings.base_url} answers in {took_ms:.0f} ms")
    # The `Date` header has whole seconds, so up to one second of skew is no skew.
    middle = asked_at + (heard_at - asked_at) / 2
    skew_s = max(0.0, abs((server_at - middle).total_seconds()) - 1.0)
    if skew_s < _SKEW_WARN_S:
        yield Finding("ok", "clock", "agrees with the router's")
        return
    level: Level = "fail" if skew_s >= _SKEW_FAIL_S else "warn"
    yield Finding(
        level,
        "clock",
        f"{skew_s:.0f} s away from the router's",
        "Set this machine's clock (NTP): webhook signatures and quotes live by it.",
    )


def _scopes(client: "Client") -> Iterator[Finding]:
    tries: dict[str, Callable[[], object]] = {
        "read": lambda: client.list_batches(limit=1),
        "quote": lambda: client.quote_model([f"doctor-{_NO_SUCH}"], estimated_items=1),
        "submit": lambda: client.submit_batch({
            "quote_id": f"qlock_{_NO_SUCH}",
            "input_file_id": f"file_{_NO_SUCH}",
        }),
        "cancel": lambda: client.cancel_batch(f"batch_{_NO_SUCH}"),
    }
    lacking: list[str] = []
    for scope, ask in tries.items():
        try:
            ask()
        except NotFoundError:
            continue
        except AuthError as error:
            if error.code == "unauthorized":
                yield _failure("key", error, "The router does not know this key, or it is revoked.")
                return
            lacking.append(scope)
        except APIError as error:
            if scope == "read":
                yield _failure("key", error)
                return
        except BatchrouterError as error:
            yield _failure("key", error)
            return
    if not lacking:
        yield Finding("ok", "key", "valid for read, quote, submit and cancel")
        return
    yield Finding(
        "fail" if "read" in lacking else "warn",
        "key",
        f"valid, but lacks the scope {', '.join(lacking)}",
        "A run needs quote, submit and read. Embedded router: batchrouter keys create --data DIR",
        5,
    )


def _runs_folder(settings: "Settings") -> Iterator[Finding]:
    from batchrouter.api.settings import masked_url  # noqa: PLC0415 - loads pydantic
    from batchrouter.run.folder import RunFolder  # noqa: PLC0415 - loads pydantic

    where = masked_url(settings.runs_url)
    options = dict(settings.storage_options)
    try:
        folder = RunFolder.below(settings.runs_url, "", options)
        existed = bool(folder.fs.exists(folder.root))
        folder.ensure()
        path = folder.path(f".doctor-{secrets.token_hex(6)}")
        try:
            folder.create(path, b"a try of `batchrouter doctor`")
            is_exclusive = _refuses(lambda: folder.create(path, b"a second writer"))
        finally:
            with suppress(OSError):
                folder.fs.rm_file(path)
            if not existed:
                with suppress(OSError):
                    folder.fs.rmdir(folder.root)
    except StorageError as error:
        yield _failure("runs", error, f"Make {where} writable, or set BATCHROUTER_RUNS_URL.")
    except BatchrouterError as error:
        yield _failure("runs", error)
    except Exception as error:  # noqa: BLE001 - every object store raises its own
        yield Finding("fail", "runs", f"{where}: {type(error).__name__}: {error}", None, 10)
    else:
        yield from _exclusive(where, is_exclusive=is_exclusive)


def _refuses(second_write: Callable[[], None]) -> bool:
    try:
        second_write()
    except FileExistsError:
        return True
    return False


def _exclusive(where: str, *, is_exclusive: bool) -> Iterator[Finding]:
    if is_exclusive:
        yield Finding("ok", "runs", f"{where} is writable, and each file is created once")
        return
    yield Finding(
        "fail",
        "runs",
        f"{where} let two writers create the same file",
        "Two workers could buy the same run twice there. Use local disk, S3, GCS or Azure.",
        10,
    )


def _inbox(settings: "Settings") -> Iterator[Finding]:
    together = (settings.webhook_url, settings.webhook_secret, settings.inbox_url)
    if not any(together):
        yield Finding("ok", "webhooks", "not used: runs ask the router every few seconds")
        return
    if settings.inbox_url is not None:
        from batchrouter.api.settings import masked_url  # noqa: PLC0415 - loads pydantic
        from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy

        try:
            events, _ = open_inbox(settings.inbox_url, **settings.storage_options).events_since(
                None
            )
        except Exception as error:  # noqa: BLE001 - every database and store raises its own
            said = str(error).partition("\n")[0]
            yield Finding(
                "fail",
                "inbox",
                f"{masked_url(settings.inbox_url)} cannot be read: {said}",
                "Check BATCHROUTER_INBOX_URL; the receiver and the runs must share it.",
                10,
            )
        else:
            yield Finding("ok", "inbox", f"readable, {len(events):,} events in it")
    names = ("WEBHOOK_URL", "WEBHOOK_SECRET", "INBOX_URL")
    missing = [
        f"BATCHROUTER_{name}" for name, value in zip(names, together, strict=True) if not value
    ]
    if missing:
        yield Finding(
            "warn",
            "webhooks",
            f"set up in part: {', '.join(missing)} not set",
            "A wait is woken by deliveries only when all three are set.",
        )
    else:
        yield Finding("ok", "webhooks", f"delivered to {_shown_url(settings)}")


def _shown_url(settings: "Settings") -> str:
    from batchrouter.api.settings import masked_url  # noqa: PLC0415 - loads pydantic

    return masked_url(settings.webhook_url or "")
