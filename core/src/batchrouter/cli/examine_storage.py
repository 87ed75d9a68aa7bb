"""What `doctor` finds out about the runs URL and the inbox: what they can do, and who sees them."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from batchrouter.cli.finding import Finding, failure
from batchrouter.errors import BatchrouterError, StorageError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings

_EXTRA_OF = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    "postgresql": "postgres",
}
"""Which extra opens a URL, by its scheme."""


def examine_runs(settings: "Settings") -> Iterator[Finding]:
    """Write a file into the runs URL, try to write it once more, and remove it."""
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
        yield failure("runs", error, f"Make {where} writable, or set BATCHROUTER_RUNS_URL.")
    except BatchrouterError as error:
        yield failure("runs", error, _needed_extra(settings.runs_url, error))
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


def examine_inbox(settings: "Settings") -> Iterator[Finding]:
    """Read the inbox, and see whether those who run elsewhere would read the same one."""
    if settings.inbox_url is None:
        return
    from batchrouter.api.settings import masked_url  # noqa: PLC0415 - loads pydantic
    from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy

    try:
        inbox = open_inbox(settings.inbox_url, **settings.storage_options)
        try:
            events, _ = inbox.events_since(None)
        finally:
            inbox.close()
    except Exception as error:  # noqa: BLE001 - every database and store raises its own
        said = str(error).partition("\n")[0]
        yield Finding(
            "fail",
            "inbox",
            f"{masked_url(settings.inbox_url)} cannot be read: {said}",
            _needed_extra(settings.inbox_url, error)
            or "Check BATCHROUTER_INBOX_URL; the receiver and the runs must share it.",
            10,
        )
        return
    yield Finding("ok", "inbox", f"readable, {len(events):,} events in it")
    yield from _sharing(settings.inbox_url, settings.runs_url)


def _sharing(inbox_url: str, runs_url: str) -> Iterator[Finding]:
    if _is_in_memory(inbox_url):
        yield Finding(
            "fail",
            "inbox",
            "is in the memory of one process: the receiver and the runs cannot share it",
            "Name a file, a database or a folder: sqlite:///inbox.db, postgresql://…, s3://…",
            10,
        )
    elif _is_local(inbox_url) and not _is_local(runs_url):
        yield Finding(
            "warn",
            "inbox",
            "is a file of this machine, while the runs URL is not: workers elsewhere do not see it",
            "Use Postgres or a folder beside the runs, unless all runs and the receiver are here.",
        )


def _is_in_memory(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    is_sqlite = scheme.partition("+")[0] == "sqlite"
    return scheme == "memory" or (is_sqlite and rest.strip("/") in {"", ":memory:"})


def _is_local(url: str) -> bool:
    scheme, separator, _ = url.partition("://")
    return not separator or scheme.partition("+")[0] in {"sqlite", "file", "local", "memory"}


def _needed_extra(url: str, error: Exception) -> str | None:
    """Say what to install when a library is missing."""
    cause: BaseException | None = error
    extra = _EXTRA_OF.get(url.partition("://")[0].partition("+")[0])
    while cause is not None and extra is not None:
        if isinstance(cause, ImportError) or "install" in str(cause).lower():
            return f"pip install 'batchrouter-core[{extra}]'"
        cause = cause.__cause__ or cause.__context__
    return None
