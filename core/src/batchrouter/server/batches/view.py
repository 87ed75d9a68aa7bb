"""A batch as the wire shows it (contract section 5)."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from batchrouter.server.batches.states import TERMINAL
from batchrouter.server.quoting.pricing import (
    Price,
    money,
    money_from_micro,
    units_from_micro,
)
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.clock import rfc3339
from batchrouter.server.storage.tables import batch_lanes, batches, quotes

__all__ = ["billing_receipt", "find_batch", "summaries", "views"]


def find_batch(conn: Connection, workspace_id: str, batch_id: str) -> Row[Any]:
    """Find a workspace's batch.

    Raises:
        APIError: `batch_not_found`: there is none, or it is another workspace's.
    """
    batch = conn.execute(
        select(batches).where(batches.c.id == batch_id, batches.c.workspace_id == workspace_id)
    ).one_or_none()
    if batch is None:
        raise refusal("batch_not_found", "there is no such batch")
    return batch


def views(conn: Connection, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Show batches in full, in the order given; two queries for any number of them."""
    quote_answers = {
        quote.id: json.loads(quote.answer)
        for quote in conn.execute(
            select(quotes.c.id, quotes.c.answer).where(
                quotes.c.id.in_([row.quote_id for row in rows])
            )
        )
    }
    lanes: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for lane in conn.execute(
        select(batch_lanes)
        .where(batch_lanes.c.batch_id.in_([row.id for row in rows]))
        .order_by(batch_lanes.c.position)
    ):
        lanes[lane.batch_id].append(lane)
    return [_view(row, lanes[row.id], quote_answers[row.quote_id]) for row in rows]


def summaries(rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Show only what a watcher needs: id, state, counts, time of the last change."""
    return [
        {
            "id": row.id,
            "state": row.state,
            "counts": _counts(row),
            "updated_at": rfc3339(row.updated_at),
        }
        for row in rows
    ]


def billing_receipt(conn: Connection, row: Row[Any]) -> dict[str, Any]:
    """Add up what was quoted, settled, reserved, charged and released."""
    answer = json.loads(
        conn.execute(select(quotes.c.answer).where(quotes.c.id == row.quote_id)).scalar_one()
    )
    lanes = conn.execute(
        select(batch_lanes).where(batch_lanes.c.batch_id == row.id).order_by(batch_lanes.c.position)
    ).all()
    is_settled = row.charged_micro is not None
    settled = sum((_settled(row, lane) for lane in lanes), start=Price(0, 0))
    charged_micro = row.charged_micro or 0
    return {
        "quoted_price": answer["pricing_estimate"],
        "quoted_total": money_from_micro(row.quoted_total_micro),
        "settled_price": settled.to_wire() if is_settled else None,
        "settled_total": _settled_total(row),
        "provider_lanes": [_lane(row, lane) for lane in lanes],
        "rejected_lanes": [lane for lane in answer["quote_lanes"] if not lane["selected"]],
        "usage": _usage(
            sum(lane.input_tokens for lane in lanes), sum(lane.output_tokens for lane in lanes)
        ),
        "possibly_repeated": row.possibly_repeated,
        "credits": {
            "reserved": money_from_micro(row.quoted_total_micro),
            "charged": money_from_micro(charged_micro),
            "released": money_from_micro(row.released_micro or 0),
            "overrun": money(row.overrun_units or 0),
        },
    }


def _view(row: Row[Any], lanes: Sequence[Row[Any]], answer: dict[str, Any]) -> dict[str, Any]:
    request = json.loads(row.request)
    return {
        "id": row.id,
        "state": row.state,
        "quote_id": row.quote_id,
        "input_file_id": row.file_id,
        "routing_mode": request["routing_mode"],
        "privacy_tier": request["privacy_tier"],
        "allowed_regions": request["allowed_regions"],
        "sla_tier": request["sla_tier"],
        "deadline_at": rfc3339(row.deadline_at),
        "counts": _counts(row),
        "pricing_estimate": answer["pricing_estimate"],
        "quoted_total": money_from_micro(row.quoted_total_micro),
        "settled_total": _settled_total(row),
        "lanes": [_lane(row, lane) for lane in lanes],
        "routing_explanation": answer["routing_explanation"],
        "webhook": {"url": row.webhook_url} if row.webhook_url else None,
        "metadata": json.loads(row.metadata),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "completed_at": rfc3339(row.completed_at) if row.completed_at else None,
        "artifact_expires_at": rfc3339(row.artifact_expires_at)
        if row.artifact_expires_at
        else None,
        "error": json.loads(row.error) if row.error else None,
    }


def _counts(row: Row[Any]) -> dict[str, int]:
    begun = row.running + row.completed + row.failed + row.cancelled
    return {
        "total": row.total,
        "pending": row.total - begun,
        "running": row.running,
        "completed": row.completed,
        "failed": row.failed,
        "cancelled": row.cancelled,
    }


def _settled_total(row: Row[Any]) -> dict[str, str] | None:
    """What the batch cost, exactly, and never more than was quoted; None while it is open."""
    if row.state not in TERMINAL:
        return None
    return money(min(row.settled_units, units_from_micro(row.quoted_total_micro)))


def _settled(row: Row[Any], lane: Row[Any]) -> Price:
    return Price.of(lane.settled_subtotal_units, row.fee_bps)


def _lane(row: Row[Any], lane: Row[Any]) -> dict[str, Any]:
    return {
        "quote_lane_id": lane.quote_lane_id,
        "provider": lane.provider,
        "model": lane.model,
        "region": lane.region,
        "state": lane.state,
        "item_count": lane.item_count,
        "completed": lane.completed,
        "failed": lane.failed,
        "quoted_price": Price.of(lane.quoted_subtotal_units, row.fee_bps).to_wire(),
        "settled_price": _settled(row, lane).to_wire() if row.state in TERMINAL else None,
        "usage": _usage(lane.input_tokens, lane.output_tokens),
    }


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
