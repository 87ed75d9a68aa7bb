"""Requests as an OpenAI-compatible provider takes them, and what its answers say of usage."""

import math

import msgspec

from batchrouter.server.lanes.lane import LaneItem

__all__ = ["CHAT", "EMBEDDINGS", "RESPONSES", "openai_body", "usage_of"]

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

#: A line's own model is not sent: the lane decides. Nor is a stream, which a batch cannot have.
_OURS = (
    "model",
    "stream",
    "stream_options",
    "max_output_tokens",
    "max_completion_tokens",
    "max_tokens",
)
#: For an answer that tells no usage; English JSON has about 4.5 bytes a token.
_BYTES_PER_TOKEN = 4


class _Usage(msgspec.Struct, gc=False):
    """Chat names them one way, responses another."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


def openai_body(
    item: LaneItem, model: str, *, cap_parameter: str = "max_completion_tokens"
) -> bytes:
    """Write a request with the lane's model and the output cap that the price was locked with.

    Args:
        item: What is asked.
        model: The provider's name of the model.
        cap_parameter: What a chat request's cap is called.

    Raises:
        ValueError: The body is no object.

    Example:
        >>> item = LaneItem(0, CHAT, b'{"model":"x","messages":[],"max_tokens":9}', 8)
        >>> openai_body(item, "gpt-4o-mini")
        b'{"model":"gpt-4o-mini","messages":[],"max_completion_tokens":8}'
    """
    try:
        given = _decode_object(item.body)
    except msgspec.DecodeError:
        raise ValueError("the request's body is no object") from None
    body: dict[str, object] = {"model": model}
    body |= {name: value for name, value in given.items() if name not in _OURS}
    if item.endpoint != EMBEDDINGS:
        name = "max_output_tokens" if item.endpoint == RESPONSES else cap_parameter
        body[name] = item.max_output_tokens
    return _encode(body)


def usage_of(body: bytes, item: LaneItem) -> tuple[int, int]:
    """Read input and output tokens; a body that tells none is counted by its bytes.

    Example:
        >>> item = LaneItem(0, CHAT, b"{}", 8)
        >>> usage_of(b'{"usage":{"prompt_tokens":5,"completion_tokens":2}}', item)
        (5, 2)
    """
    try:
        usage = _decode_body(body).usage
    except msgspec.DecodeError:
        usage = None
    if usage is not None:
        given = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
        made = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
        if given is not None:
            return max(0, given), max(0, made or 0)
    read = math.ceil(len(item.body) / _BYTES_PER_TOKEN)
    if item.endpoint == EMBEDDINGS:
        return read, 0
    return read, min(item.max_output_tokens, math.ceil(len(body) / _BYTES_PER_TOKEN))
