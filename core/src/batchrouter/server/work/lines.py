"""Manifest lines as lanes take them, and answers as artifact lines (contract sections 4 and 6).

A line's id stands in the artifact as the raw JSON that it was uploaded as, and is never shown to
a lane. Everything else that a lane needs not read passes through as raw JSON too: a million
lines with a long schema cost one look each.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from batchrouter.money import format_units
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.quoting.pricing import subtotal, with_fee
from batchrouter.server.work.prompts import WorkflowPrompt

__all__ = ["ArtifactWriter", "ItemLine", "LineReader", "Terms", "split_lines"]

_ABSENT = msgspec.Raw(b"")
_encode = msgspec.json.Encoder().encode
EMBEDDINGS = "/v1/embeddings"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"


class _NativeLine(msgspec.Struct, gc=False):
    customer_item_id: msgspec.Raw
    input: msgspec.Raw
    operation: str | None = None


class _OpenAILine(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    url: str
    body: msgspec.Raw


class _Caps(msgspec.Struct, gc=False):
    """The parts of a body that decide its endpoint and its worst case."""

    messages: msgspec.Raw = _ABSENT
    max_output_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None


_decode_native = msgspec.json.Decoder(_NativeLine).decode
_decode_openai = msgspec.json.Decoder(_OpenAILine).decode
_decode_caps = msgspec.json.Decoder(_Caps).decode


def split_lines(block: bytes) -> list[bytes]:
    r"""Split whole lines at their line feeds, which a JSON line cannot hold inside.

    Example:
        >>> split_lines(b'{"a": 1}\r\n{"b": 2}')
        [b'{"a": 1}\r', b'{"b": 2}']
    """
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


class ItemLine(msgspec.Struct, gc=False):
    """One manifest line, read.

    Attributes:
        customer_id: The line's id as raw JSON.
        operation: The native dialect's operation; ``workflow`` for a workflow's line.
        item: What the lane gets.
    """

    customer_id: bytes
    operation: str
    item: LaneItem


class LineReader:
    """Reads the lines of one manifest.

    Args:
        dialect: ``native`` or ``openai`` (`files.dialect`).
        max_output_tokens: The quote's cap, for items that set none.
        prompt: The workflow's prompt, when the batch bought a workflow.
        is_workflow: True for a workflow's lines; without the prompt they are not for a lane.
    """

    def __init__(
        self,
        dialect: str,
        max_output_tokens: int,
        prompt: WorkflowPrompt | None = None,
        *,
        is_workflow: bool = False,
    ) -> None:
        self._read = self._native if dialect == "native" else self._openai
        self._max_output_tokens = max_output_tokens
        self._prompt = prompt
        self._is_workflow = is_workflow or prompt is not None

    def read(self, block: bytes, first_item: int) -> list[ItemLine]:
        """Read whole lines.

        Args:
            block: Lines as they stand in the manifest.
            first_item: The first line's place in the manifest, from 0.
        """
        return [self._read(line, first_item + nth) for nth, line in enumerate(split_lines(block))]

    def _native(self, line: bytes, sequence_no: int) -> ItemLine:
        read = _decode_native(line)
        body = bytes(read.input)
        if self._is_workflow:
            request = self._prompt.render(body) if self._prompt else b""
            item = LaneItem(sequence_no, CHAT, request, self._max_output_tokens)
            return ItemLine(bytes(read.customer_item_id), "workflow", item)
        operation = read.operation or "responses"
        caps = _decode_caps(body)
        if operation == "embeddings":
            endpoint = EMBEDDINGS
        else:
            endpoint = CHAT if bytes(caps.messages) else RESPONSES
        item = LaneItem(sequence_no, endpoint, body, self._cap(caps, endpoint))
        return ItemLine(bytes(read.customer_item_id), operation, item)

    def _openai(self, line: bytes, sequence_no: int) -> ItemLine:
        read = _decode_openai(line)
        body = bytes(read.body)
        item = LaneItem(sequence_no, read.url, body, self._cap(_decode_caps(body), read.url))
        return ItemLine(bytes(read.custom_id), "", item)

    def _cap(self, caps: _Caps, endpoint: str) -> int:
        if endpoint == EMBEDDINGS:
            return 0
        own = (caps.max_output_tokens, caps.max_completion_tokens, caps.max_tokens)
        given = [cap for cap in own if cap is not None]
        return max(given) if given else self._max_output_tokens


@dataclass(frozen=True, slots=True)
class Terms:
    """The locked price of a lane's items, in 10^-12 dollar a token."""

    input_units_per_token: int
    output_units_per_token: int
    fee_bps: int
    tiers: tuple[tuple[int, int, int], ...] = ()

    def subtotal(self, input_tokens: int, output_tokens: int) -> int:
        """What the provider takes for one item, without the fee."""
        return subtotal(
            input_tokens,
            output_tokens,
            self.input_units_per_token,
            self.output_units_per_token,
            self.tiers,
        )


class ArtifactWriter:
    """Writes one artifact line for each manifest line, in the manifest's dialect."""

    def __init__(self, dialect: str, batch_id: str) -> None:
        self._is_native = dialect == "native"
        self._batch_id = batch_id.encode()

    def completed(
        self,
        line: ItemLine,
        answer: LaneAnswer,
        *,
        body: bytes,
        provider: str,
        model: str,
        attempt: int,
        terms: Terms,
        completed_at: str,
    ) -> bytes:
        """Write the line of an item that has an output."""
        item_id = self._item_id(line.item.sequence_no)
        if not self._is_native:
            return (
                b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b",'
                b'"body":%b},"error":null}\n'
            ) % (item_id, line.customer_id, item_id, body)
        cost = with_fee(terms.subtotal(answer.input_tokens, answer.output_tokens), terms.fee_bps)
        return (
            b'{"customer_item_id":%b,"batch_item_id":"%b","sequence_no":%d,"operation":"%b",'
            b'"status":"completed","provider":%b,"provider_model":%b,"attempt":%d,"usage":'
            b'{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d},"cost":{"currency":"usd",'
            b'"amount":"%b"},"output":%b,"error":null,"completed_at":"%b"}\n'
        ) % (
            line.customer_id,
            item_id,
            line.item.sequence_no,
            line.operation.encode(),
            _encode(provider),
            _encode(model),
            attempt,
            answer.input_tokens,
            answer.output_tokens,
            answer.input_tokens + answer.output_tokens,
            format_units(cost).encode(),
            body,
            completed_at.encode(),
        )

    def failed(
        self,
        line: ItemLine,
        code: str,
        message: str,
        *,
        provider: str | None,
        model: str | None,
        attempt: int,
        completed_at: str,
        cost_units: int = 0,
        usage: tuple[int, int] = (0, 0),
    ) -> bytes:
        """Write the line of an item that has none; ``attempt`` is 0 when it was never sent."""
        error: dict[str, Any] = {"code": code, "message": message}
        item_id = self._item_id(line.item.sequence_no)
        if not self._is_native:
            return b'{"id":"%b","custom_id":%b,"response":null,"error":%b}\n' % (
                item_id,
                line.customer_id,
                _encode(error),
            )
        return (
            b'{"customer_item_id":%b,"batch_item_id":"%b","sequence_no":%d,"operation":"%b",'
            b'"status":"failed","provider":%b,"provider_model":%b,"attempt":%d,"usage":'
            b'{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d},"cost":{"currency":"usd",'
            b'"amount":"%b"},"output":null,"error":%b,"completed_at":"%b"}\n'
        ) % (
            line.customer_id,
            item_id,
            line.item.sequence_no,
            line.operation.encode(),
            _encode(provider),
            _encode(model),
            attempt,
            usage[0],
            usage[1],
            sum(usage),
            format_units(cost_units).encode(),
            _encode(error),
            completed_at.encode(),
        )

    def _item_id(self, sequence_no: int) -> bytes:
        """Derive the item's id, so that a repeated chunk names its items as before."""
        content = b"%b/%d" % (self._batch_id, sequence_no)
        return b"item_" + blake2b(content, digest_size=16).hexdigest().encode()
