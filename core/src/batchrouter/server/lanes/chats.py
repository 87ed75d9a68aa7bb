"""Responses asked as chats, for servers that know chats only, and answered as responses again."""

from typing import Any

import msgspec

from batchrouter.server.lanes.bodies import CHAT, RESPONSES
from batchrouter.server.lanes.conversation import Turn, answer_body, read_conversation
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem

__all__ = ["as_chat", "as_response"]


class _Message(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct, gc=False):
    choices: list[_Choice]
    id: str = ""
    model: str = ""


_decode = msgspec.json.Decoder(_Completion).decode
_encode = msgspec.json.Encoder().encode


def as_chat(item: LaneItem) -> LaneItem:
    r"""Turn a response request into a chat; anything else is returned as it is.

    Raises:
        ValueError: It asks for what a chat cannot carry.

    Example:
        >>> asked = LaneItem(0, RESPONSES, b'{"input":"Hi","instructions":"Be short."}', 8)
        >>> as_chat(asked).body[:60]
        b'{"messages":[{"role":"system","content":"Be short."},{"role"'
    """
    if item.endpoint != RESPONSES:
        return item
    asked = read_conversation(item)
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": asked.system})
    messages += [{"role": turn.role, "content": _content(turn)} for turn in asked.turns]
    body: dict[str, Any] = {"messages": messages, **asked.sampling}
    if asked.stop:
        body["stop"] = list(asked.stop)
    if asked.schema is not None:
        described = {"name": asked.schema_name, "schema": asked.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    return msgspec.structs.replace(item, endpoint=CHAT, body=_encode(body))


def _content(turn: Turn) -> Any:
    if all(kind == "text" for kind, _ in turn.parts):
        return "".join(value for _, value in turn.parts)
    return [
        {"type": "text", "text": value}
        if kind == "text"
        else {"type": "image_url", "image_url": {"url": value}}
        for kind, value in turn.parts
    ]


def as_response(answer: LaneAnswer, item: LaneItem) -> LaneAnswer:
    """Turn a chat's answer into the dialect that the item asked in."""
    if item.endpoint != RESPONSES or answer.body is None:
        return answer
    try:
        completion = _decode(answer.body)
        choice = completion.choices[0]
    except (msgspec.DecodeError, IndexError):
        told = "the provider's answer is no chat completion"
        return LaneAnswer(
            None,
            answer.input_tokens,
            answer.output_tokens,
            error_code="provider_error",
            error_message=told,
        )
    body = answer_body(
        item,
        choice.message.content or "",
        model=completion.model,
        answer_id=completion.id,
        usage=(answer.input_tokens, answer.output_tokens),
        is_cut=choice.finish_reason == "length",
    )
    return msgspec.structs.replace(answer, body=body)
