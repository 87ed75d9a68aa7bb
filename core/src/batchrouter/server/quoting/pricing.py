"""The arithmetic of a price: integers of 10^-12 dollar, the fee rounded up per lane.

Rates come per million tokens and are whole multiples of 10^-6 dollar, so a token costs a whole
number of units and no estimate is ever rounded (contract section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from batchrouter.money import UNITS_PER_MICRO_USD, format_units, units_from_usd

__all__ = [
    "MODEL_FEE_BPS",
    "WORKFLOW_FEE_BPS",
    "Price",
    "fee_units",
    "micro_from_units",
    "money",
    "money_from_micro",
    "subtotal",
    "units_from_micro",
    "units_per_token",
    "with_fee",
]

MODEL_FEE_BPS = 590
"""5.90 % of the subtotal, in hundredths of a percent (contract section 2)."""

WORKFLOW_FEE_BPS = 1180
"""11.80 % of the subtotal (contract section 2)."""

_BPS = 10_000
_TOKENS_PER_RATE = 1_000_000


def units_per_token(usd_per_mtok: Decimal) -> int:
    """Turn a rate in USD per million tokens into units of 10^-12 dollar per token.

    Raises:
        ValueError: The rate is finer than 10^-6 dollar per million tokens.

    Example:
        >>> units_per_token(Decimal("0.075"))
        75000
    """
    units, rest = divmod(units_from_usd(usd_per_mtok), _TOKENS_PER_RATE)
    if rest:
        raise ValueError(f"{usd_per_mtok} USD per million tokens is finer than 0.000001")
    return units


def subtotal(
    input_tokens: int,
    output_tokens: int,
    input_units: int,
    output_units: int,
    tiers: Sequence[tuple[int, int, int]] = (),
) -> int:
    """Price one request, without the fee.

    Args:
        input_tokens: Of the request.
        output_tokens: Of its answer.
        input_units: An input token's price.
        output_units: An output token's price.
        tiers: Each tier's start in input tokens, exclusive, and its two prices; rising.

    Example:
        >>> subtotal(10, 1, 2, 3), subtotal(11, 1, 2, 3, [(10, 4, 6)])
        (23, 50)
    """
    for above, tier_input_units, tier_output_units in tiers:
        if input_tokens > above:
            input_units, output_units = tier_input_units, tier_output_units
    return input_tokens * input_units + output_tokens * output_units


def fee_units(subtotal_units: int, fee_bps: int) -> int:
    """Compute the fee on one lane's (or one item's) subtotal, rounded up to the unit.

    Example:
        >>> fee_units(1_000, 590), fee_units(1, 590)
        (59, 1)
    """
    return -(-subtotal_units * fee_bps // _BPS)


def with_fee(subtotal_units: int, fee_bps: int) -> int:
    """Add the fee to a subtotal, in units."""
    return subtotal_units + fee_units(subtotal_units, fee_bps)


def micro_from_units(units: int) -> int:
    """Round units up to whole micro-dollars.

    Example:
        >>> micro_from_units(1_000_001)
        2
    """
    return -(-units // UNITS_PER_MICRO_USD)


def units_from_micro(micro: int) -> int:
    """Turn micro-dollars into units of 10^-12 dollar."""
    return micro * UNITS_PER_MICRO_USD


def money(units: int) -> dict[str, str]:
    """Write an amount as the wire's Money."""
    return {"currency": "usd", "amount": format_units(units)}


def money_from_micro(micro: int) -> dict[str, str]:
    """Write micro-dollars as the wire's Money."""
    return money(units_from_micro(micro))


@dataclass(frozen=True, slots=True)
class Price:
    """What providers take and what the router takes, in units of 10^-12 dollar.

    Example:
        >>> Price.of(1_000_000_000, 590).to_wire()["total"]
        '0.001059'
    """

    subtotal_units: int
    fee_units: int

    @classmethod
    def of(cls, subtotal_units: int, fee_bps: int) -> "Price":
        """Price one lane."""
        return cls(subtotal_units, fee_units(subtotal_units, fee_bps))

    @property
    def total_units(self) -> int:
        """Subtotal and fee."""
        return self.subtotal_units + self.fee_units

    def __add__(self, other: "Price") -> "Price":
        return Price(self.subtotal_units + other.subtotal_units, self.fee_units + other.fee_units)

    def to_wire(self) -> dict[str, Any]:
        """Write the contract's Price object."""
        return {
            "currency": "usd",
            "provider_subtotal": format_units(self.subtotal_units),
            "batchrouter_fee": format_units(self.fee_units),
            "total": format_units(self.total_units),
        }
