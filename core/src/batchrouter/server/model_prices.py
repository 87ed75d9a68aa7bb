"""What a model costs at a lane, as `router.toml` says it: rates, and tiers for long requests."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from batchrouter.money import parse_usd
from batchrouter.server.quoting.pricing import units_per_token

__all__ = ["ConfigPart", "ModelPrice", "Name", "PriceTier", "Task", "Usd"]

Task = Literal["responses", "embeddings", "vision"]


def _rate(value: Any) -> Decimal:
    # TOML floats arrive as Decimals (`parse_float`), JSON ones as strings or Decimals.
    rate = parse_usd(value)
    units_per_token(rate)
    return rate


UsdPerMtok = Annotated[Decimal, BeforeValidator(_rate)]
Usd = Annotated[Decimal, BeforeValidator(parse_usd)]
Name = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
]


class ConfigPart(BaseModel):
    """A part of `router.toml`: unknown settings are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class PriceTier(ConfigPart):
    """What a request costs whose input is longer than so many tokens, all of its tokens.

    Attributes:
        above_input_tokens: The length from which on it holds, exclusive.
        input_usd_per_mtok: USD per million input tokens.
        output_usd_per_mtok: USD per million output tokens.
    """

    above_input_tokens: Annotated[int, Field(ge=1)]
    input_usd_per_mtok: UsdPerMtok
    output_usd_per_mtok: UsdPerMtok


class ModelPrice(ConfigPart):
    """A model that a lane serves, and what it costs there.

    Attributes:
        name: What callers ask for.
        provider_model: What the provider calls it; the name when it is not given.
        input_usd_per_mtok: USD per million input tokens.
        output_usd_per_mtok: USD per million output tokens.
        tiers: Other prices for requests with a long input, by rising length.
        tasks: What it can do.
    """

    name: Name
    provider_model: str = ""
    input_usd_per_mtok: UsdPerMtok
    output_usd_per_mtok: UsdPerMtok = Decimal(0)
    tiers: tuple[PriceTier, ...] = ()
    tasks: tuple[Task, ...] = ("responses",)

    @model_validator(mode="before")
    @classmethod
    def _default_provider_model(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "name" in data:
            return {"provider_model": data["name"], **data}
        return data

    @model_validator(mode="after")
    def _check_tiers(self) -> Self:
        starts = [tier.above_input_tokens for tier in self.tiers]
        if starts != sorted(set(starts)):
            raise ValueError(f"model {self.name!r}: tiers must rise by above_input_tokens")
        return self

    @property
    def tier_units(self) -> tuple[tuple[int, int, int], ...]:
        """Each tier's start, and its price of an input and an output token in 10^-12 dollar."""
        return tuple(
            (
                tier.above_input_tokens,
                units_per_token(tier.input_usd_per_mtok),
                units_per_token(tier.output_usd_per_mtok),
            )
            for tier in self.tiers
        )

    @property
    def input_units_per_token(self) -> int:
        """The price of an input token in 10^-12 dollar."""
        return units_per_token(self.input_usd_per_mtok)

    @property
    def output_units_per_token(self) -> int:
        """The price of an output token in 10^-12 dollar."""
        return units_per_token(self.output_usd_per_mtok)
