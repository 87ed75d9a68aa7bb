"""What a quote promises to do: which lane takes which items, at which price.

It is written with the quote and read when the batch runs, so that a router whose configuration
has changed meanwhile still keeps the locked price.
"""

import dataclasses
import json
from dataclasses import dataclass

__all__ = ["Fallback", "Plan", "PlannedLane"]


@dataclass(frozen=True, slots=True)
class PlannedLane:
    """A lane and its contiguous range of the manifest.

    Attributes:
        first_item: Position in the manifest, from 0.
        input_units_per_token: The locked price, in 10^-12 dollar a token.
        output_units_per_token: The same, of an output token.
        subtotal_units: The estimate for the whole range, without the fee.
        tiers: Prices of long requests, as `pricing.subtotal` takes them.
    """

    quote_lane_id: str
    provider: str
    model: str
    region: str
    first_item: int
    item_count: int
    input_units_per_token: int
    output_units_per_token: int
    subtotal_units: int
    estimated_completion_s: int
    tiers: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Fallback:
    """A lane and model that may take over, in this order, at the price of the lane it replaces."""

    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The locked terms of a quote.

    Attributes:
        task: `responses`, `embeddings` or `vision`.
        models: What the quote was asked for; a line's own `model` must be one of them.
        workflow: `slug@vN`, for a workflow quote.
        fee_bps: Hundredths of a percent.
        input_tokens_per_item: Assumed mean, a workflow's own prompt included.
        output_tokens_per_item: Assumed mean.
        max_output_tokens: Cap of an item that sets none itself.
        fallback_order: Eligible lanes that were not chosen, cheapest first.
    """

    task: str
    models: tuple[str, ...]
    workflow: str | None
    fee_bps: int
    input_tokens_per_item: int
    output_tokens_per_item: int
    max_output_tokens: int
    lanes: tuple[PlannedLane, ...]
    fallback_order: tuple[Fallback, ...]

    def to_json(self) -> str:
        """Write the plan as a JSON object."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan that `to_json` wrote.

        Example:
            >>> plan = Plan("responses", ("m",), None, 590, 1, 1, 1, (), (Fallback("p", "m"),))
            >>> Plan.from_json(plan.to_json()) == plan
            True
        """
        data = json.loads(text)
        data["models"] = tuple(data["models"])
        data["lanes"] = tuple(
            PlannedLane(**lane | {"tiers": tuple(map(tuple, lane.get("tiers", ())))})
            for lane in data["lanes"]
        )
        data["fallback_order"] = tuple(Fallback(**item) for item in data["fallback_order"])
        return cls(**data)

    def lanes_for(self, item_count: int) -> tuple[PlannedLane, ...]:
        """Cut the ranges to a manifest that holds fewer items than were quoted.

        Estimates stay as quoted: the lock is on the whole.

        Example:
            >>> lane = PlannedLane("q", "p", "m", "eu", 0, 10, 1, 1, 100, 5)
            >>> plan = Plan("responses", ("m",), None, 590, 5, 5, 5, (lane,), ())
            >>> plan.lanes_for(4)[0].item_count
            4
        """
        return tuple(
            dataclasses.replace(
                lane, item_count=max(0, min(lane.item_count, item_count - lane.first_item))
            )
            for lane in self.lanes
        )
