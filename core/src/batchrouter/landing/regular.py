"""A line as nearly all are: done, in the native dialect, with one chat answer that came to its end.

One typed struct fits only such lines, with the answer's text in it, so that msgspec proves in one
pass what the general way asks step by step. Whatever does not fit is read by the general way; a
test holds that both say the same.
"""

from typing import Annotated, Any, Literal

import msgspec

from batchrouter.landing.bodies import TextFields
from batchrouter.landing.envelope import (
    MAX_TOKENS,
    UNPARSABLE,
    Envelope,
    Response,
    read_line,
)

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Usage(msgspec.Struct, gc=False):
    input_tokens: _Tokens
    output_tokens: _Tokens
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Cost(msgspec.Struct, gc=False):
    currency: Literal["usd"]
    amount: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str
    refusal: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Literal["stop"]
    text: str | None = None


class _Body(TextFields, gc=False, kw_only=True):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]


class RegularLine(msgspec.Struct, gc=False):
    """Such a line; what the general way would look at and could refuse has its types."""

    customer_item_id: str
    usage: _Usage
    cost: _Cost
    output: _Body
    custom_id: str | None = None
    status: Literal["completed", "succeeded"] | None = None
    provider: str | None = None
    provider_model: str | None = None
    error: None = None
    response: Response | None = None
    completed_at: str | None = None
    is_altered: Literal[False] = False

    @property
    def held_bytes(self) -> int:
        """About what the answer takes in memory."""
        return len(self.output.choices[0].message.content)


Line = Envelope | RegularLine

_decode: Any = msgspec.json.Decoder(RegularLine).decode


def read_regular(raw: bytes) -> Line:
    """Read one line of an artifact whose bodies are a model's.

    Raises:
        UnreadableLineError: As `read_line`.

    Example:
        >>> type(read_regular(b'{"customer_item_id": "a", "output": {"content": "yes"}}'))
        <class 'batchrouter.landing.envelope.Envelope'>
    """
    try:
        return _decode(raw)
    except UNPARSABLE:
        return read_line(raw)
