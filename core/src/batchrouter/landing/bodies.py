"""What a provider said, out of the body that it said it in.

Bodies come in the shapes of chat completions (`choices[0].message.content`), responses
(`output[].content[].text`) and Anthropic messages (`content[].text`); vectors in
`data[0].embedding` or `embedding`; a workflow's body may be the object itself. Anything that
is not the answer (a refusal, a tool call, nothing) raises `UnusableError`, which becomes the
row's code, message and raw output.
"""

import base64
import binascii
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchrouter.landing.envelope import NOTHING

_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})
_WITHHELD = frozenset({"content_filter", "refusal"})
_PART_TYPES = frozenset({None, "text", "output_text"})
_UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Vector = NDArray[np.float32]

Heard = tuple[str, bool]
"""A text, and whether the output cap cut it."""


class UnusableError(ValueError):
    """The body holds no answer; `raw` is what it holds instead."""

    def __init__(self, code: str, message: str, raw: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.raw = raw


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Part] | str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = NOTHING


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    finish_reason: Any = None
    text: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    content: list[_Part] | str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class TextFields(msgspec.Struct, gc=False, kw_only=True):
    """What a body with text may have beside choices."""

    output: list[_Item] | str | None = None
    output_text: str | None = None
    content: list[_Part] | str | None = None
    stop_reason: Any = None
    incomplete_details: _Incomplete | None = None


class _TextBody(TextFields, gc=False, kw_only=True):
    choices: list[_Choice] | None = None


class _Numbers(msgspec.Struct, gc=False):
    embedding: list[float] | str | None = None


class _VectorBody(msgspec.Struct, gc=False):
    data: list[_Numbers] | None = None
    embedding: list[float] | str | None = None


class _Marks(msgspec.Struct, gc=False):
    object: Any = None
    type: Any = None
    role: Any = None


_TEXT_BODY = msgspec.json.Decoder(_TextBody | str | None)
_VECTOR_BODY = msgspec.json.Decoder(_VectorBody | None)
_MARKS = msgspec.json.Decoder(_Marks)


def text_of(body: msgspec.Raw) -> Heard:
    """Find the text that the model answered.

    Raises:
        UnusableError: `refusal`, `content_filter`, `tool_calls`, `output_truncated` (cut before
            any text), `no_output` or `unknown_body`.

    Example:
        >>> text_of(msgspec.Raw(b'{"content": [{"type": "text", "text": "yes"}]}'))
        ('yes', False)
    """
    try:
        said = _TEXT_BODY.decode(body)
    except _UNPARSABLE as error:
        raise UnusableError("unknown_body", _reason(error), _raw(body)) from None
    if said is None:
        raise UnusableError("no_output", "the line has no output", None)
    if isinstance(said, str):
        return said, False
    if said.choices:
        # Nearly every line is of this shape: a plain text that came to its end.
        choice = said.choices[0]
        message = choice.message
        if choice.finish_reason == "stop" and message is not None and message.refusal is None:
            content = message.content
            if isinstance(content, str):
                return content, False
    text, refusal, ended = _answer(said)
    if refusal or ended in _WITHHELD:
        code = "refusal" if refusal else str(ended)
        told = refusal or f"the answer was withheld ({ended})"
        raise UnusableError(code, told, refusal or text)
    is_cut = ended in _CUT
    if text is None:
        raise _without_text(said, body, is_cut=is_cut)
    return text, is_cut


def _answer(said: _TextBody) -> tuple[str | None, str | None, Any]:
    """Give text, refusal and the reason for the end, None where the body has none."""
    if said.choices:
        choice = said.choices[0]
        ended = choice.finish_reason if isinstance(choice.finish_reason, str) else None
        if choice.message is None:
            return choice.text, None, ended
        text, refusal = _joined(choice.message.content)
        return text, choice.message.refusal or refusal, ended
    if said.output is not None or said.output_text is not None:
        ended = said.incomplete_details.reason if said.incomplete_details else None
        if isinstance(said.output, str):
            return said.output, None, ended
        text, refusal = _joined_items(said.output or [])
        return said.output_text if text is None else text, refusal, ended
    text, refusal = _joined(said.content)
    return text, refusal, said.stop_reason if isinstance(said.stop_reason, str) else None


def _joined(content: list[_Part] | str | None) -> tuple[str | None, str | None]:
    if content is None or isinstance(content, str):
        return content, None
    # Reasoning and tool parts stand between the text parts, and are no part of the answer.
    texts = [part.text for part in content if part.type in _PART_TYPES and part.text is not None]
    refusals = [part.refusal for part in content if part.refusal]
    return "".join(texts) if texts else None, "".join(refusals) or None


def _joined_items(items: list[_Item]) -> tuple[str | None, str | None]:
    heard = [_joined(item.content) for item in items if item.type in {None, "message"}]
    texts = [text for text, _ in heard if text is not None]
    refusals = [refusal for _, refusal in heard if refusal]
    return "".join(texts) if texts else None, "".join(refusals) or None


def _without_text(said: _TextBody, body: msgspec.Raw, *, is_cut: bool) -> UnusableError:
    if is_cut:
        told = "the output cap was reached before any text"
        return UnusableError("output_truncated", told, _raw(body))
    message = said.choices[0].message if said.choices else None
    calls = message.tool_calls if message else NOTHING
    if bytes(calls) not in {b"null", b"[]"}:
        return UnusableError("tool_calls", "the model called a tool instead", _raw(calls))
    return UnusableError("no_output", "the body holds no text", _raw(body))


def object_of(body: msgspec.Raw) -> Heard:
    """Find a workflow's answer: the text of a provider's body, or the body as JSON text.

    Raises:
        UnusableError: As `text_of`.

    Example:
        >>> object_of(msgspec.Raw(b'{"intent": "billing"}'))
        ('{"intent": "billing"}', False)
    """
    try:
        marks = _MARKS.decode(body)
    except _UNPARSABLE:
        return text_of(body)
    is_providers = marks.object in {"chat.completion", "response"} or (
        marks.type == "message" and marks.role == "assistant"
    )
    return text_of(body) if is_providers else (bytes(body).decode(), False)


def vector_of(body: msgspec.Raw) -> Vector:
    """Find the vector of an embeddings body, as numbers or as base64 of little-endian float32.

    Raises:
        UnusableError: `no_output`, `unknown_body`, or `embedding_invalid` for a vector that is
            empty or beyond float32.

    Example:
        >>> vector_of(msgspec.Raw(b'{"data": [{"embedding": [0.5, 1]}]}')).tolist()
        [0.5, 1.0]
    """
    try:
        said = _VECTOR_BODY.decode(body)
    except _UNPARSABLE as error:
        raise UnusableError("unknown_body", _reason(error), _raw(body)) from None
    numbers = None if said is None else said.data[0].embedding if said.data else said.embedding
    if numbers is None:
        raise UnusableError("no_output", "the body holds no vector", _raw(body))
    with np.errstate(over="ignore"):
        vector = _unpacked(numbers, body) if isinstance(numbers, str) else _float32(numbers)
    if not len(vector) or not np.isfinite(vector).all():
        told = "the vector is empty, or holds a number beyond float32"
        raise UnusableError("embedding_invalid", told, _raw(body))
    return vector


def _float32(numbers: list[float]) -> Vector:
    return np.array(numbers, dtype=np.float32)


def _unpacked(encoded: str, body: msgspec.Raw) -> Vector:
    try:
        return np.frombuffer(base64.b64decode(encoded, validate=True), dtype="<f4")
    except (binascii.Error, ValueError) as error:
        told = f"the vector is no base64 of float32: {error}"
        raise UnusableError("embedding_invalid", told, _raw(body)) from None


def _raw(body: msgspec.Raw) -> str | None:
    held = bytes(body)
    return None if held == b"null" else held.decode(errors="replace")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
