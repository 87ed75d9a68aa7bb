"""One JSON line a request, with nothing in it that anybody could use.

No query strings (they sign URLs), no headers, no bodies. Every reply carries the request's id,
so that a caller's report leads to its line; every other line that is written while the request is
answered carries it too, and the ids of its span where OpenTelemetry is installed.
"""

import json
import logging
import re
import time
import traceback

from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchrouter import tracing
from batchrouter.server.http.failures import answer_for, foreseen
from batchrouter.server.log_fields import log_fields, logging_with
from batchrouter.server.metrics import Metrics
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.ids import new_id

__all__ = ["JsonLines", "RequestLog"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG = logging.getLogger("batchrouter.server.requests")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FIRST_FAILURE = 500


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object: time, level, logger, message and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record; an exception is named with its frames, without its values."""
        entry = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **log_fields(),
            **getattr(record, "fields", {}),
            **tracing.trace_ids(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry["exception"] = _described(record.exc_info[1])
        return json.dumps(entry, default=str)


class RequestLog:
    """ASGI middleware: request ids, the log line, the count, an answer for unforeseen errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else new_id("req")
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        known = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "batchrouter.request.id": request_id,
        }
        with (
            logging_with(request_id=request_id),
            tracing.span(method, "server", attributes=known, headers=headers),
        ):
            await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started_s = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        fields = {"method": scope["method"], "path": scope["path"]}
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # noqa: BLE001 - the last one that can answer
            refused = foreseen(error)
            if refused is None:
                error_id = new_id("err")
                _LOG.error(
                    "failed", exc_info=error, extra={"fields": {**fields, "error_id": error_id}}
                )
                refused = refusal(
                    "internal_error",
                    "the router failed; its log tells more under this error id",
                    error_id=error_id,
                )
            if status == 0:
                await answer_for(refused)(scope, receive, send_with_id)
        finally:
            elapsed_s = time.perf_counter() - started_s
            # The router leaves the matched route in the scope.
            route = getattr(scope.get("route"), "path", None)
            self._metrics.count_request(scope["method"], route, status, elapsed_s)
            _note_answer(scope["method"], route, status)
            elapsed_ms = round(elapsed_s * 1000, 1)
            line = {**fields, "status": status, "ms": elapsed_ms}
            _LOG.info("request", extra={"fields": line})


def _note_answer(method: str, route: str | None, status: int) -> None:
    answered: dict[str, str | int] = {"http.response.status_code": status}
    if route is not None:
        answered["http.route"] = route
    tracing.note(
        answered,
        name=f"{method} {route}" if route is not None else None,
        failed_as=str(status) if status >= _FIRST_FAILURE else None,
    )


def _described(error: BaseException) -> dict[str, object]:
    """Name an exception by type and frames: messages may quote a caller's data."""
    frames = traceback.extract_tb(error.__traceback__)
    described: dict[str, object] = {
        "type": type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(error, OSError | SQLAlchemyError):
        # The system's and the database's own words; parameters are hidden.
        described["message"] = str(error)
    return described
