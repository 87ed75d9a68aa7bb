"""What a caller asks a price for: the two request bodies of the quote endpoints."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from batchrouter.money import parse_usd

__all__ = ["Metadata", "ModelQuestion", "MoneyIn", "Question", "WorkflowQuestion"]

_MAX_ITEMS = 1_000_000_000
_MAX_TOKENS = 10_000_000
_AMOUNT = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?$"

Tokens = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
ModelName = Annotated[str, Field(min_length=1, max_length=128)]
Region = Annotated[str, Field(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]


class _Body(BaseModel):
    # Strict: "5" is not 5, true is not 1. Unknown fields are refused, so that a misspelt
    # `max_price` is never a missing one.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _amount_on_the_wire(value: Any) -> Decimal:
    if not isinstance(value, str) or not re.fullmatch(_AMOUNT, value):
        raise ValueError('write the amount as a decimal string, for example "25.00"')
    return parse_usd(value)


class MoneyIn(_Body):
    """An amount as the wire writes it: a decimal string."""

    currency: Literal["usd"] = "usd"
    amount: Annotated[
        Decimal,
        BeforeValidator(_amount_on_the_wire),
        WithJsonSchema({"type": "string", "pattern": _AMOUNT}),
    ]


class Question(_Body):
    """What both kinds of quote have in common (contract section 3).

    Attributes:
        estimated_items: How many lines the manifest may have.
        routing_mode: `cheapest` is what there is.
        privacy_tier: The tier that a lane must meet.
        allowed_regions: `global` admits every lane, another name the lanes of that region.
        sla_tier: `standard` ends within 24 h, `flex` within 48 h.
        max_price: No quote above it is made.
        allow_split: Whether several lanes may share the items when none has the capacity.
        estimated_input_tokens: Mean of an item.
        estimated_output_tokens: Mean of an item.
        max_output_tokens: Cap of an item.
        metadata: Kept with the quote; 16 pairs of strings.
    """

    estimated_items: Annotated[int, Field(ge=1, le=_MAX_ITEMS)]
    routing_mode: Literal["cheapest"] = "cheapest"
    privacy_tier: Literal["standard", "restricted", "zdr"] = "standard"
    allowed_regions: Annotated[list[Region], Field(min_length=1, max_length=64)] = ["global"]
    sla_tier: Literal["standard", "flex"] = "standard"
    max_price: MoneyIn | None = None
    allow_split: bool = True
    estimated_input_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    estimated_output_tokens: Tokens | None = None
    max_output_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    metadata: Metadata = {}

    @model_validator(mode="after")
    def _check_caps(self) -> Self:
        mean, cap = self.estimated_output_tokens, self.max_output_tokens
        if mean is not None and cap is not None and mean > cap:
            raise ValueError("estimated_output_tokens is above max_output_tokens")
        return self


class ModelQuestion(Question):
    """A price for one model, or for the cheapest of several acceptable ones."""

    models: Annotated[list[ModelName], Field(min_length=1, max_length=64)]
    task: Literal["responses", "embeddings", "vision"] = "responses"

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        body = dict(data)
        if "model" in body:
            if "models" in body:
                raise ValueError("give model or models, not both")
            body["models"] = [body.pop("model")]
        if "operation" in body:
            if "task" in body and body["task"] != body["operation"]:
                raise ValueError("task and operation are one field under two names, and differ")
            body["task"] = body.pop("operation")
        return body


class WorkflowQuestion(Question):
    """A price for the outcome of a curated workflow, `slug@vN` or `slug`."""

    workflow: Annotated[
        str, Field(max_length=128, pattern=r"^[a-z0-9][a-z0-9-]*(@v[1-9][0-9]{0,8})?$")
    ]
