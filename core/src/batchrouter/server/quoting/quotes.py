"""A quote: the routing of a question, priced, explained, and locked in a row."""

import json
from collections.abc import Mapping
from typing import Any

from batchrouter import killpoints
from batchrouter.money import UNITS_PER_USD, usd_from_units
from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes.health import unhealthy_lanes
from batchrouter.server.lanes.load import LaneLoad, lane_loads
from batchrouter.server.quoting.explain import explain
from batchrouter.server.quoting.plan import Fallback, Plan, PlannedLane
from batchrouter.server.quoting.pricing import (
    micro_from_units,
    money_from_micro,
)
from batchrouter.server.quoting.questions import ModelQuestion, WorkflowQuestion
from batchrouter.server.quoting.routing import NoLaneError, Rejection, Routing, Share, route
from batchrouter.server.quoting.terms import Terms, model_terms, workflow_terms
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.clock import database_now_us, rfc3339
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.ids import new_id
from batchrouter.server.storage.tables import quotes

__all__ = ["make_quote"]


def make_quote(
    database: Database,
    config: RouterConfig,
    workspace_id: str,
    question: ModelQuestion | WorkflowQuestion,
) -> dict[str, Any]:
    """Price a question and lock the price.

    Returns:
        The contract's quote object; a row holds it, and the plan behind it.

    Raises:
        APIError: `model_not_found`, `workflow_not_found`, `no_eligible_lane`,
            `provider_capacity_unavailable`, or `invalid_request` when the sum is above
            `limits.quote_usd`. Nothing is kept then.
    """
    if isinstance(question, ModelQuestion):
        terms = model_terms(config, question)
    else:
        terms = workflow_terms(config, question)
    routing = _route(config, terms, unhealthy_lanes(database), lane_loads(database))
    if routing.price.total_units > config.limits.quote_usd * UNITS_PER_USD:
        raise refusal(
            "invalid_request",
            f"estimated_items: the quote would be {usd_from_units(routing.price.total_units)} USD,"
            f" and this router locks {config.limits.quote_usd} USD at most",
        )
    lanes = tuple(_planned(share, terms) for share in routing.shares)
    quote_id = new_id("qlock")
    with database.writing() as conn:
        created_at = database_now_us(conn)
        expires_at = created_at + config.limits.quote_s * 1_000_000
        answer = _answer(
            quote_id, terms, routing, lanes, created_at=created_at, expires_at=expires_at
        )
        conn.execute(
            quotes.insert().values(
                id=quote_id,
                workspace_id=workspace_id,
                kind=terms.kind,
                request=_request(terms, question),
                answer=json.dumps(answer),
                plan=_plan(terms, routing, lanes).to_json(),
                item_count=terms.demand.item_count,
                quoted_total_micro=micro_from_units(routing.price.total_units),
                input_tokens_per_item=terms.input_tokens_per_item,
                max_output_tokens=terms.max_output_tokens,
                created_at=created_at,
                expires_at=expires_at,
            )
        )
        killpoints.reached("quotes.before_commit")
    killpoints.reached("quotes.after_commit")
    return answer


def _route(
    config: RouterConfig,
    terms: Terms,
    unhealthy: Mapping[str, str],
    loads: Mapping[str, LaneLoad],
) -> Routing:
    try:
        return route(config.lanes, terms.demand, unhealthy, loads)
    except NoLaneError as none:
        if none.allocated is not None:
            raise refusal(
                "provider_capacity_unavailable",
                f"{none}; ask for fewer items, more models or allow_split",
                requested=terms.demand.item_count,
                allocated=none.allocated,
                limits=[
                    {
                        "provider": offer.lane.provider,
                        "model": offer.model.name,
                        "capacity_items": offer.lane.capacity_items,
                    }
                    for offer in none.limits
                ],
            ) from None
        reasons = "; ".join(f"{item.provider} {item.reason}" for item in none.rejections)
        raise refusal(
            "no_eligible_lane",
            f"{none}: {reasons}",
            rejected_lanes=[_rejected(item) for item in none.rejections],
        ) from None


def _planned(share: Share, terms: Terms) -> PlannedLane:
    return PlannedLane(
        quote_lane_id=new_id("qlane"),
        provider=share.offer.lane.provider,
        model=share.offer.model.name,
        region=share.offer.lane.region,
        first_item=share.first_item,
        item_count=share.item_count,
        input_units_per_token=share.offer.model.input_units_per_token,
        output_units_per_token=share.offer.model.output_units_per_token,
        subtotal_units=share.offer.item_units(terms.demand) * share.item_count,
        estimated_completion_s=share.offer.completion_s(share.item_count),
        tiers=share.offer.model.tier_units,
    )


def _plan(terms: Terms, routing: Routing, lanes: tuple[PlannedLane, ...]) -> Plan:
    return Plan(
        task=terms.demand.task,
        models=terms.demand.models,
        workflow=terms.workflow.reference if terms.workflow else None,
        fee_bps=terms.demand.fee_bps,
        input_tokens_per_item=terms.demand.input_tokens,
        output_tokens_per_item=terms.demand.output_tokens,
        max_output_tokens=terms.max_output_tokens,
        lanes=lanes,
        fallback_order=tuple(
            Fallback(offer.lane.provider, offer.model.name) for offer in routing.fallback
        ),
    )


def _request(terms: Terms, question: ModelQuestion | WorkflowQuestion) -> str:
    """Keep what a create may repeat, and what the caller tagged the quote with."""
    return json.dumps({
        "routing_mode": question.routing_mode,
        "privacy_tier": question.privacy_tier,
        "allowed_regions": question.allowed_regions,
        "sla_tier": question.sla_tier,
        "task": terms.demand.task,
        "metadata": question.metadata,
    })


def _answer(
    quote_id: str,
    terms: Terms,
    routing: Routing,
    lanes: tuple[PlannedLane, ...],
    *,
    created_at: int,
    expires_at: int,
) -> dict[str, Any]:
    explanation, reasons = explain(terms.demand, routing)
    answer: dict[str, Any] = {
        "quote_id": quote_id,
        "kind": terms.kind,
        "state": "active",
        "created_at": rfc3339(created_at),
        "expires_at": rfc3339(expires_at),
        "item_count": terms.demand.item_count,
        "pricing_estimate": routing.price.to_wire(),
        "quoted_total": money_from_micro(micro_from_units(routing.price.total_units)),
        "assumptions": terms.assumptions,
        "quote_lanes": [
            *(
                _selected(lane, share, reason)
                for lane, share, reason in zip(lanes, routing.shares, reasons, strict=True)
            ),
            *(_rejected(item) for item in routing.rejections),
        ],
        "routing_explanation": explanation,
    }
    if terms.workflow is not None:
        answer["workflow"] = {"slug": terms.workflow.slug, "version": terms.workflow.version}
    return answer


def _selected(lane: PlannedLane, share: Share, reason: str) -> dict[str, Any]:
    return {
        "quote_lane_id": lane.quote_lane_id,
        "provider": lane.provider,
        "model": lane.model,
        "region": lane.region,
        "selected": True,
        "item_count": lane.item_count,
        "price": share.price.to_wire(),
        "estimated_completion_seconds": lane.estimated_completion_s,
        "reason": reason,
    }


def _rejected(rejection: Rejection) -> dict[str, Any]:
    return {
        "provider": rejection.provider,
        "model": rejection.model,
        "region": rejection.region,
        "selected": False,
        "rejection_code": rejection.code,
        "reason": rejection.reason,
    }
