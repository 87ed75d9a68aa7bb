"""One manifest line: whether it is as the contract wants it, and what it says of itself.

Two parsers read a line. The fast one (orjson) refuses most of what the exact one refuses, but
takes the last of repeated keys, goes deeper than 64 and rounds whole numbers beyond 64 bits; so
its result is used only when the line provably has none of these, and everything else is read
again by `strict_json`.

The proof for repeated keys: no quote is followed by white space and a colon, and no escape spells
a quote or a colon, so every member contributes one `":` to the line, as every member that
survived contributes one when the result is written again. Text inside strings can only add to
the line's side. Equal counts therefore mean that no member was lost. And of a number beyond 64 bits
at least two digits stand among every ninth byte, one behind the other.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from batchrouter.server import strict_json
from batchrouter.server.strict_json import MAX_DEPTH, StrictJsonError

__all__ = ["Line", "LineError", "read_line"]

Dialect = Literal["native", "openai"]

_NATIVE_KEYS = frozenset({"customer_item_id", "operation", "model", "input", "metadata"})
_OPERATIONS = frozenset({"responses", "embeddings", "vision"})
_OPENAI_URLS = {
    "/v1/responses": "responses",
    "/v1/chat/completions": "responses",
    "/v1/embeddings": "embeddings",
}
_CAPS = ("max_output_tokens", "max_completion_tokens", "max_tokens")
_MAX_ID_CHARACTERS = 128
_MAX_MODEL_CHARACTERS = 128
_MAX_CAP_TOKENS = 10_000_000
_MEMBER_SIGN = b'":'
_DOUBT = re.compile(rb'"[ \t\r]+:|\\u00(?:22|3[aA])')
_LONG_DIGITS = 19  # -(2**63) - 1 has so many; fewer never leave 64 bits
_TWO_DIGITS = re.compile(rb"[0-9][0-9]")
_LONG_NUMBER = re.compile(rb"[:,\[ \t\r]-?[0-9]{%d}" % _LONG_DIGITS)


class LineError(Exception):
    """A line is refused; `code` is stable, the message is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Line:
    """What a good line says.

    Attributes:
        endpoint: What must be the same in a whole file: the operation, or OpenAI's URL;
            None for a workflow's line.
        operation: `responses`, `embeddings`, `vision`; None for a workflow's line.
        model: The model that the line asks for, if any.
        input: The native `input`, or OpenAI's `body`.
        input_bytes: Its size as compact JSON.
        output_cap: The line's own cap on output tokens.
    """

    item_id: str
    dialect: Dialect
    endpoint: str | None
    operation: str | None
    model: str | None
    input: dict[str, Any]
    input_bytes: int
    output_cap: int | None


def read_line(raw: bytes) -> Line:
    """Check one line, given without its line end.

    Raises:
        LineError: Something is wrong with it.

    Example:
        >>> line = read_line(b'{"customer_item_id":"a","operation":"embeddings","input":'
        ...                  b'{"input":"hi"}}')
        >>> line.item_id, line.operation, line.input_bytes
        ('a', 'embeddings', 14)
    """
    try:
        item = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _line(_exact(raw))[0]
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets > MAX_DEPTH and strict_json.depth_of(item) > MAX_DEPTH:
        raise LineError("too_deep", f"nested deeper than {MAX_DEPTH}")
    line, members = _line(item)
    if raw.count(_MEMBER_SIGN) != members or _may_hide_members(raw) or _may_round(raw):
        return _line(_exact(raw))[0]
    return line


def _may_hide_members(raw: bytes) -> bool:
    # Three searches at memory speed settle nearly every line.
    plain = b" :" not in raw and b"\t:" not in raw and b"\r:" not in raw and b"\\u00" not in raw
    return not plain and _DOUBT.search(raw) is not None


def _may_round(raw: bytes) -> bool:
    # Every ninth byte settles nearly every line.
    few = raw[:: _LONG_DIGITS // 2]
    return _TWO_DIGITS.search(few) is not None and _LONG_NUMBER.search(raw) is not None


def _exact(raw: bytes) -> Any:
    try:
        return strict_json.loads(raw)
    except StrictJsonError as error:
        raise LineError(error.code, str(error)) from None


def _line(item: Any) -> tuple[Line, int]:
    """Read a parsed line; also count its members at all depths, and their look-alikes."""
    if type(item) is not dict:
        raise LineError("not_an_object", "is not a JSON object")
    keys = cast("dict[str, Any]", item)
    if "customer_item_id" in keys:
        if "custom_id" in keys:
            raise LineError("unknown_dialect", "has both customer_item_id and custom_id")
        return _native(keys)
    if "custom_id" in keys:
        return _openai(keys)
    raise LineError("unknown_dialect", "has neither customer_item_id nor custom_id")


def _native(item: dict[str, Any]) -> tuple[Line, int]:
    if not item.keys() <= _NATIVE_KEYS:
        unknown = ", ".join(sorted(item.keys() - _NATIVE_KEYS))
        raise LineError("unknown_field", f"has unknown fields: {unknown}")
    item_id = _item_id(item["customer_item_id"], "customer_item_id")
    body = item.get("input")
    if type(body) is not dict:
        raise LineError("invalid_field", "input: must be an object")
    operation = item.get("operation")
    model = _model(item, "model")
    if "operation" in item:
        if type(operation) is not str or operation not in _OPERATIONS:
            known = ", ".join(sorted(_OPERATIONS))
            raise LineError("invalid_field", f"operation: must be one of {known}")
        _check_input(body, operation, "input")
    elif model is not None:
        raise LineError(
            "missing_field", "operation: is missing (a workflow's line has no model either)"
        )
    written = _written(body)
    members = len(item) + written.count(_MEMBER_SIGN)
    if "metadata" in item:
        if type(item["metadata"]) is not dict:
            raise LineError("invalid_field", "metadata: must be an object")
        members += _written(item["metadata"]).count(_MEMBER_SIGN)
    cap = _cap(body, "input") if operation is not None else None
    line = Line(item_id, "native", operation, operation, model, body, len(written), cap)
    return line, members


def _openai(item: dict[str, Any]) -> tuple[Line, int]:
    item_id = _item_id(item["custom_id"], "custom_id")
    if item.get("method") != "POST":
        raise LineError("invalid_field", "method: must be POST")
    url = item.get("url")
    operation = _OPENAI_URLS.get(url) if isinstance(url, str) else None
    if operation is None:
        raise LineError("invalid_field", f"url: must be one of {', '.join(_OPENAI_URLS)}")
    body = item.get("body")
    if type(body) is not dict:
        raise LineError("invalid_field", "body: must be an object")
    _check_input(body, operation, "body")
    model = _model(body, "body.model")
    written = _written(body)
    members = len(item) + written.count(_MEMBER_SIGN)
    line = Line(item_id, "openai", url, operation, model, body, len(written), _cap(body, "body"))
    return line, members


def _written(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # The exact parser keeps whole numbers beyond 64 bits, which orjson does not write.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _item_id(value: Any, field: str) -> str:
    if type(value) is not str or not 1 <= len(value) <= _MAX_ID_CHARACTERS:
        raise LineError(
            "invalid_item_id", f"{field}: must be a string of 1 to {_MAX_ID_CHARACTERS} characters"
        )
    # Printable text, nearly always; else only control characters are refused.
    if not value.isprintable() and any(unicodedata.category(char) == "Cc" for char in value):
        raise LineError("invalid_item_id", f"{field}: holds a control character")
    return value


def _model(holder: dict[str, Any], field: str) -> str | None:
    if "model" not in holder:
        return None
    model = holder["model"]
    if type(model) is not str or not 1 <= len(model) <= _MAX_MODEL_CHARACTERS:
        raise LineError(
            "invalid_field",
            f"{field}: must be a string of 1 to {_MAX_MODEL_CHARACTERS} characters",
        )
    return model


def _check_input(body: dict[str, Any], operation: str, field: str) -> None:
    messages = body.get("messages")
    if operation != "embeddings" and messages is not None:
        if "input" in body:
            raise LineError("invalid_field", f"{field}: has both messages and input")
        _check_messages(messages, f"{field}.messages")
        return
    given = body.get("input")
    # OpenAI's own files may hold lists: of messages, or of texts to embed.
    if not (isinstance(given, str) or (isinstance(given, list) and field == "body")) or not given:
        wanted = "input" if operation == "embeddings" else "messages or input"
        raise LineError("missing_field", f"{field}: needs {wanted}, and it may not be empty")


def _check_messages(messages: Any, field: str) -> None:
    if type(messages) is not list or not messages:
        raise LineError("invalid_field", f"{field}: must be a list of at least one message")
    for position, message in enumerate(cast("list[Any]", messages)):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise LineError(
                "invalid_field", f"{field}[{position}]: must be an object with role and content"
            )
        content = message.get("content")
        # Assistant messages of OpenAI files may have tool calls and no content.
        if not isinstance(content, str | list) and message["role"] != "assistant":
            raise LineError(
                "invalid_field", f"{field}[{position}].content: must be text or a list of parts"
            )


def _cap(body: dict[str, Any], field: str) -> int | None:
    """Read the cap; of several names the largest, since a provider may follow any of them."""
    largest: int | None = None
    for name in _CAPS:
        cap = body.get(name)
        if cap is None:
            continue
        if type(cap) is not int or not 1 <= cap <= _MAX_CAP_TOKENS:
            raise LineError(
                "invalid_field",
                f"{field}.{name}: must be a whole number from 1 to {_MAX_CAP_TOKENS}",
            )
        largest = max(cap, largest or 0)
    return largest
