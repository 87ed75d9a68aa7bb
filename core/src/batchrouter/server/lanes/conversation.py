"""A chat or a response as one thing: what was said, under which schema, with which parameters.

For providers that know neither dialect, or one of the two. What cannot be said in another
provider's terms is an error that names it: an item is refused before anything of it is dropped.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from batchrouter.server.lanes import shapes
from batchrouter.server.lanes.bodies import CHAT, RESPONSES
from batchrouter.server.lanes.lane import LaneItem

__all__ = ["Conversation", "Turn", "answer_body", "read_conversation"]

#: Say nothing about the answer: accounting, caching, or the plain default.
_WITHOUT_EFFECT = frozenset({
    "metadata",
    "model",
    "prompt_cache_key",
    "safety_identifier",
    "seed",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "user",
})
_CAPS = frozenset({"max_output_tokens", "max_completion_tokens", "max_tokens"})
_SAMPLING = ("temperature", "top_p")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said: `user` or `assistant`; parts are texts, or URLs of images."""

    role: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request.

    Attributes:
        system: All system and developer messages, joined.
        turns: At least one.
        schema: The JSON Schema of the answer, or None.
        schema_name: What it is called.
        max_output_tokens: The cap.
        sampling: `temperature` and `top_p`, where they were given.
        stop: Stop sequences.
    """

    system: str
    turns: tuple[Turn, ...]
    max_output_tokens: int
    schema: dict[str, Any] | None = None
    schema_name: str = "answer"
    sampling: dict[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()


def read_conversation(item: LaneItem) -> Conversation:
    """Read a chat or a response request.

    Raises:
        ValueError: It is neither, or asks for what cannot be carried over; names it.

    Example:
        >>> item = LaneItem(0, CHAT, b'{"messages":[{"role":"user","content":"Hi"}]}', 8)
        >>> read_conversation(item).turns[0].parts
        (('text', 'Hi'),)
    """
    try:
        body = _decode(item.body)
    except msgspec.DecodeError:
        raise ValueError("the request's body is no object") from None
    if item.endpoint == CHAT:
        said, form = body.pop("messages", None), body.pop("response_format", None)
    elif item.endpoint == RESPONSES:
        said = body.pop("input", None)
        form = (body.pop("text", None) or {}).get("format")
        if isinstance(said, str):
            said = [{"role": "user", "content": said}]
        if instructions := body.pop("instructions", None):
            said = [{"role": "system", "content": instructions}, *(said or [])]
    else:
        raise ValueError(f"this lane has no {item.endpoint}")
    if not isinstance(said, list) or not said:
        raise ValueError("the request has no messages")
    schema, name = _schema(form)
    sampling = {key: body.pop(key) for key in _SAMPLING if body.get(key) is not None}
    stop = body.pop("stop", None) or ()
    _refuse_the_rest(body)
    system, turns = _said(said)
    return Conversation(
        system=system,
        turns=turns,
        max_output_tokens=item.max_output_tokens,
        schema=schema,
        schema_name=name,
        sampling=sampling,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def _refuse_the_rest(body: dict[str, Any]) -> None:
    left = {
        name
        for name, value in body.items()
        if value is not None and name not in _WITHOUT_EFFECT and name not in _CAPS
    }
    if body.get("n") == 1:
        left.discard("n")
    if left:
        raise ValueError(f"this lane's provider has no {', '.join(sorted(left))}")


def _said(messages: list[Any]) -> tuple[str, tuple[Turn, ...]]:
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError("a message is no object")  # noqa: TRY004 - the caller's data is wrong, not its type
        role = message.get("role", "user")
        parts = tuple(_parts(message.get("content")))
        if role in {"system", "developer"}:
            system += [text for kind, text in parts if kind == "text"]
        elif role in {"user", "assistant"}:
            turns.append(Turn(role, parts))
        else:
            raise ValueError(f"a message's role is {role!r}: there is system, user and assistant")
    if not turns:
        raise ValueError("the request has no message of a user")
    return "\n\n".join(system), tuple(turns)


def _parts(content: Any) -> list[tuple[str, str]]:
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list) or not content:
        raise ValueError("a message has no content")
    parts: list[tuple[str, str]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in {"text", "input_text", "output_text"}:
            parts.append(("text", str(part.get("text", ""))))
        elif kind == "image_url":
            image = part.get("image_url")
            parts.append(("image", str(image.get("url") if isinstance(image, dict) else image)))
        elif kind == "input_image" and part.get("image_url"):
            parts.append(("image", str(part["image_url"])))
        else:
            raise ValueError(f"this lane's provider takes no part of type {kind!r}")
    return parts


def _schema(form: Any) -> tuple[dict[str, Any] | None, str]:
    if form is None or not isinstance(form, dict) or form.get("type") in {None, "text"}:
        return None, ""
    if form.get("type") == "json_object":
        return {"type": "object"}, "answer"
    if form.get("type") != "json_schema":
        raise ValueError(f"this lane's provider has no response format {form.get('type')!r}")
    told = form.get("json_schema", form)
    schema = told.get("schema") if isinstance(told, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("the response format has no schema")  # noqa: TRY004 - as above
    return schema, str(told.get("name") or "answer")


def answer_body(
    item: LaneItem, text: str, *, model: str, answer_id: str, usage: tuple[int, int], is_cut: bool
) -> bytes:
    """Write an answer in the dialect that the item asked in.

    Args:
        item: What was asked.
        text: What was answered.
        model: Who answered.
        answer_id: The provider's id of it.
        usage: Input and output tokens.
        is_cut: True when the output cap ended it.
    """
    write = shapes.responses_body if item.endpoint == RESPONSES else shapes.chat_body
    return write(
        text,
        model=model,
        item=answer_id,
        input_tokens=usage[0],
        output_tokens=usage[1],
        is_cut=is_cut,
    )
