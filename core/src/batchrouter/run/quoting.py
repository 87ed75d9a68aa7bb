"""Prices before purchases: quotes from the built manifest, and the gate at the budget.

The figures err upwards. Input tokens are the manifest's bytes by a documented ratio (or the
router's own count, where that is higher); output is the job's cap. So the receipt shows what
was not needed, and never what was missing.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Any

from batchrouter.api.models import Quote
from batchrouter.money import format_usd
from batchrouter.run.context import RunContext
from batchrouter.run.events import PartQuote, Quoted, QuotedLane
from batchrouter.run.progress import Progress
from batchrouter.run.state import PartState

FRESH_FOR = timedelta(seconds=60)
"""A quote with less left than this is asked for anew before a purchase is written down."""

_SHOWN_LANES = 16


def quote_parts(context: RunContext, parts: list[PartState]) -> None:
    """Lock a price for each part, and journal all of them as one event.

    Raises:
        APIError: The API refuses, such as `no_eligible_lane`; nothing was bought.
        TransportError: No reply; nothing was bought.
    """
    quotes: list[PartQuote] = []
    lanes: dict[tuple[str, str, str | None], QuotedLane] = {}
    why = ""
    offset_s = 0.0
    for done, part in enumerate(parts):
        context.tell(Progress("quote", done, len(parts), "parts"))
        tokens = input_tokens_per_item(context, part)
        quote = _ask(context, part, tokens)
        offset_s = context.note_server_time(quote.server_now) or 0.0
        quotes.append(
            PartQuote(
                part=part.index,
                quote_id=quote.quote_id,
                quoted_usd=quote.quoted_total.amount,
                expires_at=quote.expires_at,
                input_tokens_per_item=tokens,
            )
        )
        _add_lanes(lanes, quote)
        if quote.routing_explanation is not None:
            why = quote.routing_explanation.summary or why
    context.tell(Progress("quote", len(parts), len(parts), "parts"))
    context.journal.append(
        Quoted(
            generation=context.state.generation,
            round=context.state.round,
            quotes=tuple(quotes),
            lanes=tuple(lanes.values())[:_SHOWN_LANES],
            why=why,
            clock_offset_s=offset_s,
        )
    )


def _ask(context: RunContext, part: PartState, input_tokens: int) -> Quote:
    route = context.job.route
    built = context.to_send
    cap = built.max_output_tokens
    controls: dict[str, Any] = {
        "estimated_items": built.parts[part.index].item_count,
        "routing_mode": route.routing_mode,
        "privacy_tier": route.privacy_tier,
        "allowed_regions": tuple(route.allowed_regions),
        "sla_tier": route.sla_tier,
        "allow_split": route.allow_split,
        "estimated_input_tokens": input_tokens,
        "estimated_output_tokens": cap,
        "max_output_tokens": cap,
    }
    if route.workflow is not None:
        return context.client.quote_workflow(route.workflow, **controls)
    task = context.job.operation or "responses"
    return context.client.quote_model(tuple(route.models or ()), task=task, **controls)


def input_tokens_per_item(context: RunContext, part: PartState) -> int:
    """The mean that is quoted: ours, or the router's own count of the upload if higher."""
    built = context.to_send.parts[part.index]
    told = part.upload.input_tokens_estimate if part.upload else None
    return max(1, -(-max(built.input_tokens_estimate, told or 0) // built.item_count))


def needs_quote(context: RunContext, part: PartState) -> bool:
    """True when the part has no quote, a stale one, or one for fewer tokens than it needs."""
    quoted = context.state.quoted
    if part.quote is None or quoted is None:
        return True
    left = part.quote.expires_at - context.server_now(quoted.clock_offset_s)
    return left < FRESH_FOR or part.quote.input_tokens_per_item < input_tokens_per_item(
        context, part
    )


def _add_lanes(lanes: dict[tuple[str, str, str | None], QuotedLane], quote: Quote) -> None:
    for lane in quote.quote_lanes:
        if not lane.selected or lane.price is None:
            continue
        name = (lane.provider, lane.model, lane.region)
        before = lanes.get(name)
        lanes[name] = QuotedLane(
            provider=lane.provider,
            model=lane.model,
            region=lane.region,
            items=(lane.item_count or 0) + (before.items if before else 0),
            price_usd=lane.price.total + (before.price_usd if before else Decimal(0)),
        )


def over_budget(context: RunContext, parts: list[PartState]) -> str | None:
    """Say by how much the parts do not fit, with all that was committed before; None if they do."""
    most_usd = context.most_usd
    if most_usd is None:
        return None
    asked = sum((part.quote.quoted_usd for part in parts if part.quote), Decimal(0))
    committed = context.state.committed_usd
    if asked + committed <= most_usd:
        return None
    before = f" beside {format_usd(committed)} USD committed before" if committed else ""
    items = sum(context.to_send.parts[part.index].item_count for part in parts)
    return (
        f"the quote for {items:,} items is {format_usd(asked)} USD{before}, above the budget of "
        f"{format_usd(most_usd)} USD"
    )
