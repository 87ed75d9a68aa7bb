"""One line of an artifact, in either dialect (contract section 6), as one typed object.

A line must name its item; everything else is read as far as it can be: an unreadable cost must
not lose an answer that was paid for. What cannot be read raises `UnreadableLineError`, and the
line goes to quarantine.
"""

import json
import re
from typing import Any

import msgspec

NOTHING = msgspec.Raw(b"null")
REPLACED = "\ufffd"

_DONE = frozenset({None, "completed", "succeeded"})
_FIRST_HTTP_ERROR = 400
MAX_TOKENS = 2**63 - 1
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class UnreadableLineError(ValueError):
    """The line is not an answer to any item; the message says why."""


class ItemError(msgspec.Struct, gc=False):
    """Why an item failed, in the provider's or the router's words; both may be of any type."""

    code: Any = None
    message: Any = None


class Usage(msgspec.Struct, gc=False):
    """Tokens, by the names of the native, responses and Anthropic bodies, and of chat bodies."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Cost(msgspec.Struct, gc=False):
    """Money of the contract; the amount stays text until a whole column is cast."""

    currency: str | None = None
    amount: str | None = None


class Response(msgspec.Struct, gc=False):
    """The `response` of the OpenAI Batch dialect."""

    status_code: int | None = None
    body: msgspec.Raw = NOTHING


class Envelope(msgspec.Struct, gc=False):
    """A line in native terms; a line of the other dialect is brought to them by `read_line`."""

    customer_item_id: str | None = None
    custom_id: str | None = None
    status: str | None = None
    provider: str | None = None
    provider_model: str | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    output: msgspec.Raw = NOTHING
    error: ItemError | None = None
    response: Response | None = None
    completed_at: str | None = None
    is_altered: bool = False

    @property
    def held_bytes(self) -> int:
        """What the output takes in memory."""
        return len(self.output)

    @property
    def failure(self) -> tuple[str, str] | None:
        """Code and message of an item that failed, None for one that is done.

        An error beats a status that says otherwise, and a status that is not known is no
        success: its output may be half of one.
        """
        if self.error is not None:
            return _told(self.error)
        if self.status in _DONE:
            return None
        return "unknown_error", f"the line's status is {self.status!r}, and it has no error"


class _Accounting(msgspec.Struct, gc=False):
    model: str | None = None
    usage: Usage | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: ItemError | None = None


_LINE = msgspec.json.Decoder(Envelope)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()
_BY_FIELD = {
    each.name: msgspec.json.Decoder(each.type) for each in msgspec.structs.fields(Envelope)
}
_ACCOUNTING = msgspec.json.Decoder(_Accounting)
_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


def read_line(raw: bytes) -> Envelope:
    """Read one line of an artifact.

    Lone surrogates, which no UTF-8 can hold, become U+FFFD, and `is_altered` is set.

    Raises:
        UnreadableLineError: The line is not JSON, no object, or names no item.

    Example:
        >>> line = read_line(b'{"customer_item_id": "a", "error": {"code": "expired"}}')
        >>> line.customer_item_id, line.failure
        ('a', ('expired', ''))
    """
    try:
        line = _LINE.decode(raw)
    except msgspec.ValidationError:
        line = _read_by_field(raw)
    except UNPARSABLE as error:
        line = _read_altered(raw, error)
    if line.customer_item_id is None:
        if line.custom_id is None:
            raise UnreadableLineError("the line names no item")
        line.customer_item_id = line.custom_id
        _adopt_response(line)
    return line


def _read_by_field(raw: bytes) -> Envelope:
    """Read a line of which some field is not as the contract says; that field alone is lost."""
    try:
        fields = _FIELDS.decode(raw)
    except UNPARSABLE as error:
        raise UnreadableLineError(str(error)) from None
    line = Envelope()
    for name, decoder in _BY_FIELD.items():
        if name not in fields or name == "is_altered":
            continue
        try:
            setattr(line, name, decoder.decode(fields[name]))
        except UNPARSABLE:
            if name == "error":
                line.error = ItemError(message=_any_or_text(fields[name]))
            elif name == "status":
                line.status = bytes(fields[name]).decode(errors="replace")
    return line


def _any_or_text(raw: msgspec.Raw) -> Any:
    try:
        return _ANY.decode(raw)
    except UNPARSABLE:
        # Not UTF-8 inside, or too deep: a failed item's row must still say what came.
        return bytes(raw).decode(errors="replace")


def _read_altered(raw: bytes, error: Exception) -> Envelope:
    if not _SURROGATE_ESCAPE.search(raw):
        raise UnreadableLineError(_reason(error)) from None
    try:
        # The standard parser joins pairs and keeps lone surrogates, so what is left is lone.
        text = json.dumps(json.loads(raw, parse_constant=_refuse), ensure_ascii=False)
        line = read_line(_SURROGATE.sub(REPLACED, text).encode())
    except (ValueError, RecursionError) as still:
        raise UnreadableLineError(_reason(still)) from None
    line.is_altered = True
    return line


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _adopt_response(line: Envelope) -> None:
    response = line.response
    if response is None:
        if line.error is None:
            line.error = ItemError(message="the line has neither a response nor an error")
        return
    line.output = response.body
    if (response.status_code or 0) >= _FIRST_HTTP_ERROR and line.error is None:
        line.error = _error_of_body(response)
    try:
        accounting = _ACCOUNTING.decode(response.body)
    except UNPARSABLE:
        return
    line.provider_model = accounting.model
    line.usage = accounting.usage


def _error_of_body(response: Response) -> ItemError:
    try:
        error = _ERROR_BODY.decode(response.body).error or ItemError()
    except UNPARSABLE:
        error = ItemError()
    error.code = error.code or f"http_{response.status_code}"
    return error


def _told(error: ItemError) -> tuple[str, str]:
    code = error.code if isinstance(error.code, str) and error.code else "unknown_error"
    if error.message is None or isinstance(error.message, str):
        return code, error.message or ""
    return code, msgspec.json.encode(error.message).decode()


def tokens(usage: Usage | None) -> tuple[int | None, int | None]:
    """Give input and output tokens, None where they are not told or make no sense.

    Example:
        >>> tokens(Usage(prompt_tokens=3, output_tokens=-1))
        (3, None)
    """
    if usage is None:
        return None, None
    told_in = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
    told_out = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
    if told_in is not None and not 0 <= told_in <= MAX_TOKENS:
        told_in = None
    if told_out is not None and not 0 <= told_out <= MAX_TOKENS:
        told_out = None
    return told_in, told_out
