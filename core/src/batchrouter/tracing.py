"""Spans, where OpenTelemetry is installed (extra `otel`); elsewhere nothing, at no cost.

Names are OpenTelemetry's own where it has some (https://opentelemetry.io/docs/specs/semconv/http/),
else `batchrouter.*`. A span holds ids, counts, hosts and routes: no secret, no prompt and no query
string, which may sign a URL. An exception is named by its code or type and never quoted, for its
message and its frames may hold a caller's data.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from batchrouter._version import __version__
from batchrouter.errors import BatchrouterError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["Kind", "error_type", "note", "span", "trace_headers", "trace_ids"]

Kind = Literal["internal", "client", "server"]
Attributes = Mapping[str, str | int]


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    *,
    attributes: Attributes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Generator[None]:
    """Make what happens inside a span; `note` adds to it.

    Args:
        name: One of few: an id or a path belongs into the attributes.
        kind: ``client`` sends a request, ``server`` answers one.
        attributes: What is known already.
        headers: Of the request that is answered: its sender's span becomes the parent.

    Example:
        >>> with span("run.land", attributes={"batchrouter.run.key": "2026-11-22"}):
        ...     note({"batchrouter.rows": 10_003})
    """
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415 - `_tracer` has found it

    made = tracer.start_span(
        name,
        propagate.extract(headers) if headers is not None else None,
        trace.SpanKind[kind.upper()],
        attributes,
    )
    try:
        # What it would record of an exception is its message and its frames.
        with trace.use_span(made, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        _fail(made, error_type(error))
        raise
    finally:
        made.end()


def note(attributes: Attributes, *, name: str | None = None, failed_as: str | None = None) -> None:
    """Add to the span that is open.

    Args:
        attributes: Added, or replaced.
        name: A better name than it was begun with.
        failed_as: The span stands for a failure of this type.
    """
    if _tracer() is None:
        return
    from opentelemetry import trace  # noqa: PLC0415 - `_tracer` has found it

    current = trace.get_current_span()
    current.set_attributes(attributes)
    if name is not None:
        current.update_name(name)
    if failed_as is not None:
        _fail(current, failed_as)


def trace_headers() -> dict[str, str]:
    """Return the headers that carry the open span to the next program; none without one."""
    headers: dict[str, str] = {}
    if _tracer() is not None:
        from opentelemetry import propagate  # noqa: PLC0415 - `_tracer` has found it

        propagate.inject(headers)
    return headers


def trace_ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the open span, in hex, for a log; none without one."""
    if _tracer() is None:
        return {}
    from opentelemetry import trace  # noqa: PLC0415 - `_tracer` has found it

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def error_type(error: BaseException) -> str:
    """Name an exception: our own by its code, another by its class.

    Example:
        >>> error_type(BatchrouterError("of row 7")), error_type(ValueError("of row 7"))
        ('batchrouter_error', 'ValueError')
    """
    return error.code if isinstance(error, BatchrouterError) else type(error).__qualname__


@cache
def _tracer() -> "Tracer | None":
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, loaded with the first span
    except ImportError:
        return None
    # A proxy: it follows whatever provider the program sets, also later.
    return trace.get_tracer("batchrouter", __version__)


def _fail(made: Any, failed_as: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - `_tracer` has found it

    made.set_attribute("error.type", failed_as)
    made.set_status(Status(StatusCode.ERROR))
