"""The bodies that providers answer with, and the parts of a request that decide them."""

from typing import Any

import msgspec

__all__ = ["ChatRequest", "chat_body", "embeddings_body", "responses_body", "text_of", "user_text"]


_ABSENT = msgspec.Raw(b"")


class Message(msgspec.Struct, gc=False):
    """One message; ``content`` is a string or a list of typed parts."""

    role: str = "user"
    content: msgspec.Raw = _ABSENT


class ChatRequest(msgspec.Struct):
    """The parts of a request that a lane looks at; everything else passes through unread."""

    messages: list[Message] | None = None
    input: msgspec.Raw = _ABSENT
    response_format: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT
    dimensions: int | None = None
    encoding_format: str = "float"


_decode_any = msgspec.json.Decoder().decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_encode = msgspec.json.Encoder().encode


def text_of(content: Any) -> str:
    """Join the text of a content, which is a string or a list of parts.

    Example:
        >>> text_of([{"type": "text", "text": "Where is"}, {"type": "text", "text": "my card?"}])
        'Where is my card?'
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(text for text in texts if isinstance(text, str) and text)
    return ""


def user_text(request: ChatRequest) -> str:
    """Return what the user said: the last user message, or the whole plain ``input``."""
    messages = request.messages
    raw = bytes(request.input)
    if messages is None and raw:
        if raw[:1] == b"[":
            messages = _decode_messages(raw)
        else:
            return text_of(_decode_any(raw))
    for message in reversed(messages or []):
        if message.role == "user" and bytes(message.content):
            return text_of(_decode_any(message.content))
    return ""


def chat_body(
    text: str, *, model: str, item: str, input_tokens: int, output_tokens: int, is_cut: bool
) -> bytes:
    """Write a chat completion, as ``/v1/chat/completions`` answers."""
    return (
        b'{"id":"chatcmpl-%b","object":"chat.completion","model":%b,"choices":[{"index":0,'
        b'"message":{"role":"assistant","content":%b},"finish_reason":"%b"}],"usage":'
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
    ) % (
        item.encode(),
        _encode(model),
        _encode(text),
        b"length" if is_cut else b"stop",
        input_tokens,
        output_tokens,
        input_tokens + output_tokens,
    )


def responses_body(
    text: str, *, model: str, item: str, input_tokens: int, output_tokens: int, is_cut: bool
) -> bytes:
    """Write a response, as ``/v1/responses`` answers."""
    return (
        b'{"id":"resp_%b","object":"response","status":"%b","model":%b,"output":[{"type":"message",'
        b'"id":"msg_%b","status":"%b","role":"assistant","content":[{"type":"output_text","text":%b,'
        b'"annotations":[]}]}],"usage":{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d}}'
    ) % (
        item.encode(),
        b"incomplete" if is_cut else b"completed",
        _encode(model),
        item.encode(),
        b"incomplete" if is_cut else b"completed",
        _encode(text),
        input_tokens,
        output_tokens,
        input_tokens + output_tokens,
    )


def embeddings_body(vectors: list[Any], *, model: str, input_tokens: int) -> bytes:
    """Write an embeddings list, as ``/v1/embeddings`` answers; vectors are lists or base64."""
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return _encode({"object": "list", "model": model, "data": data, "usage": usage})
