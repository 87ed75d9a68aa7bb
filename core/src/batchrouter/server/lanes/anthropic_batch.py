"""Anthropic's Message Batches: both dialects are translated there and back.

Wire: `POST /v1/messages/batches` with all requests in the body, no files and no metadata; a list
by time; results as JSON lines once `processing_status` is `ended` (API reference, read 2026-11).
A lost create can only be found by its time and count, and proven by its items' ids.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from batchrouter.server.lanes.bodies import EMBEDDINGS
from batchrouter.server.lanes.conversation import Conversation, answer_body, read_conversation
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.provider import Candidate, ProviderLimits, Reconciles, Report
from batchrouter.server.lanes.settings import LaneSettings
from batchrouter.server.lanes.troubles import trouble
from batchrouter.server.lanes.wire import Wire
from batchrouter.server.storage.clock import now_us, us_from_datetime

__all__ = ["VERSION", "AnthropicBatch", "messages_params"]

#: Sent as `anthropic-version`.
VERSION = "2023-06-01"
_BATCHES = "/v1/messages/batches"
_PAGE = 100
#: A tool that must be called is how a schema is asked for: its input is the answer.
_TOOL = "answer"
_IMAGES = ("image/gif", "image/jpeg", "image/png", "image/webp")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class _Id(msgspec.Struct, gc=False):
    custom_id: str | None = None


_decode_id = msgspec.json.Decoder(_Id).decode


class AnthropicBatch:
    """One model of Anthropic's; `provider.ProviderBatch` has the methods.

    Args:
        wire: The account.
        model: Anthropic's name of the model.
        settings: Limits.
    """

    def __init__(self, wire: Wire, model: str, settings: LaneSettings) -> None:
        self.reconciles: Reconciles = "count"
        self.limits = ProviderLimits(
            settings.max_items, settings.max_bytes, settings.enqueued_tokens
        )
        self.poll_s = settings.poll_s
        self._wire = wire
        self._model = model

    def now_us(self) -> int:
        """Ask for one batch of the list, and read the answer's time."""
        self._wire.ask("GET", _BATCHES, params={"limit": 1})
        return self._wire.now_us() or now_us()

    def line(self, item_id: str, item: LaneItem) -> bytes:
        """Write the item as one of the batch's requests."""
        if item.endpoint == EMBEDDINGS:
            raise ValueError("Anthropic has no embeddings")
        params = messages_params(read_conversation(item), self._model)
        return _encode({"custom_id": item_id, "params": params})

    def upload(self, intent: str, lines: Iterable[bytes]) -> str | None:
        """There are no files: the create has everything."""
        del intent, lines

    def create(self, intent: str, input_file: str | None, lines: Iterable[bytes]) -> str:
        """Create the batch; its items' ids bear the intent."""
        del intent, input_file
        body = b'{"requests":[%b]}' % b",".join(lines)
        answer = self._wire.ask(
            "POST", _BATCHES, content=body, headers={"Content-Type": "application/json"}
        )
        return str(answer["id"])

    def listed(self, since_us: int) -> Iterator[Candidate]:
        """Page the list, newest first, back to a time."""
        after: str | None = None
        while True:
            params = {"limit": _PAGE} | ({"after_id": after} if after else {})
            page = self._wire.ask("GET", _BATCHES, params=params)
            for batch in page["data"]:
                created_at = us_from_datetime(datetime.fromisoformat(batch["created_at"]))
                if created_at < since_us:
                    return
                counts = batch.get("request_counts") or {}
                yield Candidate(batch["id"], created_at, item_count=sum(counts.values()))
            if not page.get("has_more") or not page["data"]:
                return
            after = page.get("last_id") or page["data"][-1]["id"]

    def delete_file(self, input_file: str) -> None:
        """There are no files."""

    def report(self, batch_id: str) -> Report:
        """Read the batch's status; what was cut short shows in its counts."""
        batch = self._wire.ask("GET", f"{_BATCHES}/{batch_id}")
        if batch["processing_status"] != "ended":
            return Report("working")
        counts = batch.get("request_counts") or {}
        return Report("ended", was_cut_short=bool(counts.get("expired") or counts.get("canceled")))

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Read the results, from this API's own path and never from a URL that is told."""
        return self._wire.read(f"{_BATCHES}/{batch_id}/results")

    def item_id(self, line: bytes) -> str | None:
        """Read `custom_id`."""
        try:
            return _decode_id(line).custom_id
        except msgspec.DecodeError:
            return None

    def answer(self, line: bytes, item: LaneItem) -> LaneAnswer:
        """Read a result."""
        result = _decode(line)["result"]
        match result["type"]:
            case "succeeded":
                return _answer_from(result["message"], item)
            case "errored":
                error = result.get("error") or {}
                error = error.get("error") or error
                return trouble(str(error.get("message", "")), code=str(error.get("type", "")))
            case kind:
                told = f"Anthropic ended its batch before this item ({kind})"
                return trouble(told, code="batch_expired")

    def cancel(self, batch_id: str) -> None:
        """Ask for the cancel."""
        self._wire.ask("POST", f"{_BATCHES}/{batch_id}/cancel")

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()


def messages_params(asked: Conversation, model: str) -> dict[str, Any]:
    """Write a conversation as the parameters of Anthropic's Messages API.

    Raises:
        ValueError: An image is neither a data URL nor an https URL, or of a type that is not taken.
    """
    params: dict[str, Any] = {
        "model": model,
        "max_tokens": max(1, asked.max_output_tokens),
        "messages": [
            {"role": turn.role, "content": [_block(*part) for part in turn.parts]}
            for turn in asked.turns
        ],
        **asked.sampling,
    }
    if asked.system:
        params["system"] = asked.system
    if asked.stop:
        params["stop_sequences"] = list(asked.stop)
    if asked.schema is not None:
        tool = {"name": _TOOL, "description": asked.schema_name, "input_schema": asked.schema}
        params["tools"] = [tool]
        params["tool_choice"] = {"type": "tool", "name": _TOOL}
    return params


def _block(kind: str, value: str) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": value}
    if value.startswith("data:") and ";base64," in value:
        told, _, data = value.removeprefix("data:").partition(";base64,")
        media_type = told.partition(";")[0].lower()
        if media_type not in _IMAGES:
            raise ValueError(f"an image is {media_type!r}: Anthropic takes {', '.join(_IMAGES)}")
        source = {"type": "base64", "media_type": media_type, "data": data}
    elif value.startswith("https://"):
        source = {"type": "url", "url": value}
    else:
        raise ValueError("an image must be a data URL with base64, or an https URL")
    return {"type": "image", "source": source}


def _answer_from(message: dict[str, Any], item: LaneItem) -> LaneAnswer:
    """Translate a message; a call of the tool is the structured answer."""
    usage = message.get("usage") or {}
    read = sum(
        int(usage.get(name) or 0)
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    )
    tokens = read, int(usage.get("output_tokens") or 0)
    if message.get("stop_reason") == "refusal":
        told = "the model refused this request"
        return LaneAnswer(None, *tokens, error_code="content_policy", error_message=told)
    blocks = message.get("content") or []
    calls = [block["input"] for block in blocks if block.get("type") == "tool_use"]
    if calls:
        text = _encode(calls[0]).decode()
    else:
        text = "".join(block.get("text", "") for block in blocks if block.get("type") == "text")
    body = answer_body(
        item,
        text,
        model=str(message.get("model", "")),
        answer_id=str(message.get("id", "")),
        usage=tokens,
        is_cut=message.get("stop_reason") == "max_tokens",
    )
    return LaneAnswer(body, *tokens)
