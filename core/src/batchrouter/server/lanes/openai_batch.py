"""OpenAI's Files and Batch API, and every provider shaped like it (Azure, Together, Groq, vLLM's).

Wire: `POST /files` (purpose `batch`), `POST /batches` with metadata, `GET /batches` newest first,
`GET /batches/{id}`, an output file and an error file, either of which may be absent. Facts of
OpenAI's own API reference, read 2026-11; base URL, headers and limits are configuration.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from batchrouter.server.lanes.bodies import openai_body, usage_of
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.provider import (
    Candidate,
    ProviderLimits,
    Reconciles,
    Report,
)
from batchrouter.server.lanes.provider_files import ProviderFiles
from batchrouter.server.lanes.settings import LaneSettings
from batchrouter.server.lanes.troubles import trouble
from batchrouter.server.lanes.wire import Wire
from batchrouter.server.storage.clock import now_us

__all__ = ["INTENT", "OpenAIBatch", "read_answer", "read_item_id"]

#: The metadata that a batch bears.
INTENT = "batchrouter_intent"
_PAGE = 100
_OK = 200
_US = 1_000_000
#: What is reported late when too much is queued (seen as a failed batch, not as an HTTP error).
_QUEUE_FULL = frozenset({"token_limit_exceeded", "enqueued_token_limit_exceeded"})


class _Response(msgspec.Struct, gc=False):
    body: msgspec.Raw
    status_code: int = _OK


class _Error(msgspec.Struct, gc=False):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: _Error | str | None = None
    message: str | None = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str | None = None
    response: _Response | None = None
    error: _Error | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_encode = msgspec.json.Encoder().encode


class OpenAIBatch:
    """One model of such a provider; `provider.ProviderBatch` has the methods.

    Args:
        wire: The account.
        model: The provider's name of the model.
        settings: Limits, window, the name of the output cap.
    """

    def __init__(self, wire: Wire, model: str, settings: LaneSettings) -> None:
        self.reconciles: Reconciles = "metadata+file"
        self.limits = ProviderLimits(
            settings.max_items, settings.max_bytes, settings.enqueued_tokens
        )
        self.poll_s = settings.poll_s
        self._wire = wire
        self._files = ProviderFiles(wire, "/files")
        self._model = model
        self._settings = settings

    def now_us(self) -> int:
        """The time of the last answer; asks for one batch when there was none."""
        if self._wire.now_us() is None:
            self._wire.ask("GET", "/batches", params={"limit": 1})
        return self._wire.now_us() or now_us()

    def line(self, item_id: str, item: LaneItem) -> bytes:
        """Write the item as a line of OpenAI's batch files."""
        body = openai_body(item, self._model, cap_parameter=self._settings.cap_parameter)
        return b'{"custom_id":"%b","method":"POST","url":%b,"body":%b}' % (
            item_id.encode(),
            _encode(self._path(item.endpoint)),
            body,
        )

    def upload(self, intent: str, lines: Iterable[bytes]) -> str | None:
        """Upload the lines as a file of their own."""
        return self._files.upload(intent, lines)

    def create(self, intent: str, input_file: str | None, lines: Iterable[bytes]) -> str:
        """Create the batch, with the intent in its metadata."""
        body = {
            "input_file_id": input_file,
            "endpoint": _url_of(next(iter(lines))),
            "completion_window": self._settings.completion_window,
            "metadata": {INTENT: intent},
        }
        return str(self._wire.ask("POST", "/batches", json=body)["id"])

    def listed(self, since_us: int) -> Iterator[Candidate]:
        """Page the list, newest first, back to a time."""
        after: str | None = None
        while True:
            params = {"limit": _PAGE} | ({"after": after} if after else {})
            page = self._wire.ask("GET", "/batches", params=params)
            for batch in page["data"]:
                created_at = int(batch["created_at"]) * _US
                if created_at < since_us:
                    return
                yield Candidate(
                    batch["id"],
                    created_at,
                    intent=(batch.get("metadata") or {}).get(INTENT),
                    input_file=batch.get("input_file_id"),
                )
            if not page.get("has_more") or not page["data"]:
                return
            after = page["data"][-1]["id"]

    def delete_file(self, input_file: str) -> None:
        """Delete the file, so that a create that names it fails validation."""
        self._files.delete(input_file)

    def report(self, batch_id: str) -> Report:
        """Read the batch's status."""
        batch = self._wire.ask("GET", f"/batches/{batch_id}")
        match batch["status"]:
            case "completed":
                return Report("ended")
            case "expired" | "cancelled":
                return Report("ended", was_cut_short=True)
            case "failed":
                return _failure(batch)
            case _:
                return Report("working")

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Read the output file, then the error file."""
        batch = self._wire.ask("GET", f"/batches/{batch_id}")
        yield from self._files.read(batch.get("output_file_id"), batch.get("error_file_id"))

    def item_id(self, line: bytes) -> str | None:
        """Read `custom_id`."""
        return read_item_id(line)

    def answer(self, line: bytes, item: LaneItem) -> LaneAnswer:
        """Read a line of either file."""
        return read_answer(line, item)

    def cancel(self, batch_id: str) -> None:
        """Ask for the cancel."""
        self._wire.ask("POST", f"/batches/{batch_id}/cancel")

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def _path(self, endpoint: str) -> str:
        return self._settings.endpoint_prefix + endpoint.removeprefix("/v1")


def _url_of(line: bytes) -> str:
    return str(msgspec.json.decode(line)["url"])


def _failure(batch: dict[str, Any]) -> Report:
    errors = (batch.get("errors") or {}).get("data") or [{}]
    codes = {str(error.get("code")) for error in errors}
    return Report(
        "failed",
        is_queue_full=bool(codes & _QUEUE_FULL),
        code=str(errors[0].get("code") or "batch_failed"),
        message=str(errors[0].get("message") or "the provider gives no reason"),
    )


def read_item_id(line: bytes) -> str | None:
    """Read a result line's id; None when it is cut or is no such line."""
    try:
        return _decode_line(line).custom_id
    except msgspec.DecodeError:
        return None


def read_answer(line: bytes, item: LaneItem) -> LaneAnswer:
    r"""Read a result line as an answer, in the body's own dialect.

    Example:
        >>> item = LaneItem(0, "/v1/chat/completions", b"{}", 8)
        >>> line = b'{"custom_id":"a","response":null,"error":{"code":"batch_expired"}}'
        >>> read_answer(line, item).error_code
        'provider_timeout'
    """
    read = _decode_line(line)
    if read.response is None or read.error is not None:
        error = read.error or _Error(message="the provider gives no answer and no reason")
        return trouble(error.message or "", code=str(error.code or error.type or ""))
    body = bytes(read.response.body)
    if read.response.status_code == _OK:
        tokens = usage_of(body, item)
        return LaneAnswer(body, *tokens)
    code, message = _error_of(body)
    return trouble(message, code=code, status=read.response.status_code)


def _error_of(body: bytes) -> tuple[str, str]:
    try:
        told = _decode_error(body)
    except msgspec.DecodeError:
        return "", body[:200].decode(errors="replace")
    if isinstance(told.error, _Error):
        error = told.error
        return str(error.code or error.type or ""), error.message or ""
    return "", told.error or told.message or ""
