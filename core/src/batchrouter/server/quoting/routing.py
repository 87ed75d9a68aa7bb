"""Which lanes may run the work, which of them are cheapest, and why the others do not.

Pure: the same question to the same lanes gives the same answer. Cheapest first, ties by
provider and then by model; one lane takes everything if one can, else the lanes share
contiguous ranges in that order (contract section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchrouter.server.config import SLA_TIER_S, LaneConfig
from batchrouter.server.lanes.load import IDLE, LaneLoad
from batchrouter.server.model_prices import ModelPrice
from batchrouter.server.quoting.pricing import Price, subtotal

__all__ = ["Demand", "NoLaneError", "Offer", "Rejection", "Routing", "Share", "route"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What lanes are measured against; token figures are means of an item."""

    task: str
    models: tuple[str, ...]
    item_count: int
    input_tokens: int
    output_tokens: int
    privacy_tier: str
    allowed_regions: tuple[str, ...]
    sla_tier: str
    max_price_units: int | None
    allow_split: bool
    fee_bps: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on a lane."""

    lane: LaneConfig
    model: ModelPrice
    load: LaneLoad = IDLE

    def item_units(self, demand: Demand) -> int:
        """What an item costs there, without the fee, in 10^-12 dollar."""
        input_tokens = -(-demand.input_tokens * self.lane.quoted_input_percent // 100)
        return subtotal(
            input_tokens,
            demand.output_tokens,
            self.model.input_units_per_token,
            self.model.output_units_per_token,
            self.model.tier_units,
        )

    def price(self, demand: Demand, item_count: int) -> Price:
        """What so many items cost there."""
        return Price.of(self.item_units(demand) * item_count, demand.fee_bps)

    def completion_s(self, item_count: int) -> int:
        """Estimate how long so many items take there, in seconds, behind those that wait."""
        first_s = max(self.lane.estimated_completion_s, self.load.chunk_s)
        return int(first_s + (self.load.waiting_items + item_count) / self.lane.items_per_second)


@dataclass(frozen=True, slots=True)
class Share:
    """An offer that was taken, and its range of the manifest."""

    offer: Offer
    first_item: int
    item_count: int
    price: Price


@dataclass(frozen=True, slots=True)
class Rejection:
    """An offer that was not taken; `code` is one of the contract's rejection codes."""

    provider: str
    model: str
    region: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Routing:
    """The answer: who runs it, who does not and why, and who stands in."""

    shares: tuple[Share, ...]
    rejections: tuple[Rejection, ...]
    fallback: tuple[Offer, ...]

    @property
    def price(self) -> Price:
        """The sum over the lanes, each with its own rounded fee."""
        return sum((share.price for share in self.shares), start=Price(0, 0))


class NoLaneError(Exception):
    """Nobody can run it on these terms.

    Attributes:
        rejections: Every lane, with its reason.
        allocated: When only capacity is missing: how many items could be placed; else None.
        limits: Then, each eligible lane's capacity.
    """

    def __init__(
        self,
        message: str,
        rejections: Sequence[Rejection],
        *,
        allocated: int | None = None,
        limits: Sequence[Offer] = (),
    ) -> None:
        super().__init__(message)
        self.rejections = tuple(rejections)
        self.allocated = allocated
        self.limits = tuple(limits)


def route(
    lanes: Sequence[LaneConfig],
    demand: Demand,
    unhealthy: Mapping[str, str] | None = None,
    loads: Mapping[str, LaneLoad] | None = None,
) -> Routing:
    """Choose the cheapest eligible lane, or the cheapest split when no lane has the capacity.

    Args:
        lanes: In any order.
        demand: What is asked.
        unhealthy: Lanes that are taken out for now, with the reason.
        loads: How busy lanes are; one that is not named is idle.

    Raises:
        NoLaneError: No lane may, or those that may have not the capacity, or cost too much.
    """
    offers, rejections = _eligible(lanes, demand, unhealthy or {}, loads or {})
    offers.sort(key=lambda offer: (offer.item_units(demand), offer.lane.provider, offer.model.name))
    if not offers:
        raise NoLaneError("no lane meets the request", rejections)
    roomy = [offer for offer in offers if offer.lane.capacity_items >= demand.item_count]
    if roomy:
        shares = (_share(roomy[0], demand, first_item=0, item_count=demand.item_count),)
    else:
        shares = _split(offers, demand, rejections)
    price = sum((share.price for share in shares), start=Price(0, 0))
    if demand.max_price_units is not None and price.total_units > demand.max_price_units:
        # The cheapest way is too dear, so every other one is as well.
        rejections += [
            _reject(offer, "price_above_max", "costs more than max_price") for offer in offers
        ]
        raise NoLaneError("the cheapest eligible lanes cost more than max_price", rejections)
    taken = [share.offer for share in shares]
    left = [offer for offer in offers if offer not in taken]
    rejections += [_passed_over(offer, demand, shares) for offer in left]
    affordable = tuple(offer for offer in left if not _above_max(offer, demand))
    return Routing(shares, tuple(rejections), affordable)


def _eligible(
    lanes: Sequence[LaneConfig],
    demand: Demand,
    unhealthy: Mapping[str, str],
    loads: Mapping[str, LaneLoad],
) -> tuple[list[Offer], list[Rejection]]:
    offers: list[Offer] = []
    rejections: list[Rejection] = []
    for lane in sorted(lanes, key=lambda lane: lane.provider):
        served = [
            model
            for model in lane.models
            if model.name in demand.models and demand.task in model.tasks
        ]
        if not served:
            wanted = " or ".join(demand.models)
            reason = f"does not serve {wanted} for {demand.task}"
            rejections.append(
                Rejection(
                    lane.provider, demand.models[0], lane.region, "model_incompatible", reason
                )
            )
        for model in served:
            offer = Offer(lane, model, loads.get(lane.provider, IDLE))
            verdict = _verdict(lane, offer, demand, unhealthy.get(lane.provider))
            if verdict:
                rejections.append(_reject(offer, *verdict))
            else:
                offers.append(offer)
    return offers, rejections


def _verdict(
    lane: LaneConfig, offer: Offer, demand: Demand, trouble: str | None
) -> tuple[str, str] | None:
    """Say why a lane may not run it; None when it may."""
    if lane.paused or trouble is not None:
        return "provider_unhealthy", trouble or "is paused by its operator"
    if "global" not in demand.allowed_regions and lane.region not in demand.allowed_regions:
        allowed = ", ".join(demand.allowed_regions)
        return "region_not_allowed", f"processes data in {lane.region}; allowed: {allowed}"
    if demand.privacy_tier not in lane.privacy_tiers:
        tiers = ", ".join(lane.privacy_tiers)
        return "privacy_tier_unsupported", f"meets {tiers}, not {demand.privacy_tier}"
    if demand.sla_tier not in lane.sla_tiers:
        tiers = ", ".join(lane.sla_tiers)
        return "sla_unattainable", f"offers {tiers}, not {demand.sla_tier}"
    needed_s = offer.completion_s(min(demand.item_count, lane.capacity_items))
    if needed_s > SLA_TIER_S[demand.sla_tier]:
        behind = f"; {offer.load.waiting_items:,} items wait there" * (offer.load != IDLE)
        return "sla_unattainable", f"would need about {needed_s:,} s{behind}"
    return None


def _split(
    offers: Sequence[Offer], demand: Demand, rejections: Sequence[Rejection]
) -> tuple[Share, ...]:
    room: dict[str, int] = {offer.lane.provider: offer.lane.capacity_items for offer in offers}
    placeable = sum(room.values()) if demand.allow_split else max(room.values())
    if not demand.allow_split or placeable < demand.item_count:
        what = "together have" if demand.allow_split else "each have at most"
        raise NoLaneError(
            f"{demand.item_count:,} items are wanted, and the eligible lanes {what} room for"
            f" {placeable:,}",
            [
                *rejections,
                *(_reject(offer, "capacity_exhausted", _room(offer)) for offer in offers),
            ],
            allocated=placeable,
            limits=offers,
        )
    shares: list[Share] = []
    placed = 0
    for offer in offers:
        count = min(room[offer.lane.provider], demand.item_count - placed)
        if count > 0:
            shares.append(_share(offer, demand, first_item=placed, item_count=count))
            room[offer.lane.provider] -= count
            placed += count
    return tuple(shares)


def _share(offer: Offer, demand: Demand, *, first_item: int, item_count: int) -> Share:
    return Share(offer, first_item, item_count, offer.price(demand, item_count))


def _above_max(offer: Offer, demand: Demand) -> bool:
    total_units = offer.price(demand, demand.item_count).total_units
    return demand.max_price_units is not None and total_units > demand.max_price_units


def _passed_over(offer: Offer, demand: Demand, shares: Sequence[Share]) -> Rejection:
    """Say why an eligible offer was not taken."""
    cheaper = offer.item_units(demand) < shares[-1].offer.item_units(demand)
    if _above_max(offer, demand):
        return _reject(offer, "price_above_max", "costs more than max_price")
    if cheaper and offer.lane.capacity_items < demand.item_count:
        return _reject(offer, "capacity_exhausted", _room(offer))
    return _reject(offer, "not_cheapest", "costs as much or more and is kept as a stand-in")


def _room(offer: Offer) -> str:
    return f"takes {offer.lane.capacity_items:,} items of one batch"


def _reject(offer: Offer, code: str, reason: str) -> Rejection:
    return Rejection(offer.lane.provider, offer.model.name, offer.lane.region, code, reason)
