"""A routing in plain words, for the person who pays."""

from typing import Any

from batchrouter.money import format_units
from batchrouter.server.quoting.routing import Demand, Offer, Routing

__all__ = ["explain"]


def explain(demand: Demand, routing: Routing) -> tuple[dict[str, Any], list[str]]:
    """Write the contract's `routing_explanation`, and one reason for each lane that was taken.

    Example:
        >>> from batchrouter.server.config import load_config
        >>> from batchrouter.server.quoting.routing import route
        >>> demand = Demand("responses", ("gpt-4o-mini",), 10, 100, 10, "standard", ("global",),
        ...     "standard", None, True, 590)
        >>> explain(demand, route(load_config().lanes, demand))[0]["selected"]
        ['gpt-4o-mini on simulated-openai (global): 10 items']
    """
    reasons = [_reason(position) for position in range(1, len(routing.shares) + 1)]
    explanation = {
        "summary": _summary(demand, routing),
        "selected": [
            f"{_name(share.offer)}: {_items(share.item_count)}" for share in routing.shares
        ],
        "rejected": [
            f"{item.model} on {item.provider} ({item.region}): {item.reason}"
            for item in routing.rejections
        ],
        "fallback_order": [_name(offer) for offer in routing.fallback],
    }
    return explanation, reasons


def _summary(demand: Demand, routing: Routing) -> str:
    total = format_units(routing.price.total_units)
    terms = f"privacy tier {demand.privacy_tier}, regions {', '.join(demand.allowed_regions)}"
    stand_ins = (
        f" If it degrades, {_name(routing.fallback[0])} takes over at the same price."
        if routing.fallback
        else " No other lane could stand in."
    )
    first = routing.shares[0]
    if len(routing.shares) == 1:
        return (
            f"{_name(first.offer)} takes all {_items(first.item_count)} for {total} USD, fee"
            f" included: the cheapest lane that meets {terms}, SLA {demand.sla_tier}.{stand_ins}"
        )
    return (
        f"No single lane has room for {_items(demand.item_count)}, so {len(routing.shares)} lanes"
        f" share them, cheapest first, for {total} USD, fee included ({terms}, SLA"
        f" {demand.sla_tier}).{stand_ins}"
    )


def _reason(position: int) -> str:
    if position == 1:
        return "the cheapest eligible lane"
    return f"next cheapest (number {position}), for what the cheaper lanes have no room for"


def _name(offer: Offer) -> str:
    return f"{offer.model.name} on {offer.lane.provider} ({offer.lane.region})"


def _items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"
