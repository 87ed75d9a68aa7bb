"""What stands in every log line that is written for one request, or for one piece of work.

Ids only. They go to the open span, too, where OpenTelemetry is installed.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from batchrouter import tracing

__all__ = ["log_fields", "logging_with", "note_in_log", "span_attributes"]

# A dict that is changed, never replaced: the threads that work for a request share it.
_fields: ContextVar[dict[str, str | int] | None] = ContextVar(
    "batchrouter_log_fields", default=None
)


def log_fields() -> Mapping[str, str | int]:
    """Return what stands in the lines that are written here."""
    return _fields.get() or {}


@contextmanager
def logging_with(**ids: str | int) -> Generator[None]:
    """Have these ids in every line that is written inside.

    Example:
        >>> with logging_with(request_id="req_1"):
        ...     note_in_log(batch_id="batch_1")
        ...     dict(log_fields())
        {'request_id': 'req_1', 'batch_id': 'batch_1'}
    """
    token = _fields.set(dict(ids))
    try:
        yield
    finally:
        _fields.reset(token)


def note_in_log(**ids: str | int) -> None:
    """Add ids to the lines that are still to come; without a request or work, do nothing."""
    fields = _fields.get()
    if fields is not None:
        fields |= ids
        tracing.note(span_attributes(ids))


def span_attributes(ids: Mapping[str, str | int]) -> dict[str, str | int]:
    """Name ids as spans do.

    Example:
        >>> span_attributes({"batch_id": "batch_1"})
        {'batchrouter.batch.id': 'batch_1'}
    """
    return {f"batchrouter.{name.replace('_', '.')}": id_ for name, id_ in ids.items()}
