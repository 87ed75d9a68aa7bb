"""Buying: the one transaction that turns a quote into a batch.

The checks come in the contract's order (section 5), and what they found is still true when the
batch is written, for the transaction holds the write lock from its start. No file is read.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from batchrouter import killpoints
from batchrouter.errors import APIError
from batchrouter.server.batches.files import insert_file, new_file_id, store_items
from batchrouter.server.batches.fitting import check_fit
from batchrouter.server.batches.intake import ManifestFacts
from batchrouter.server.batches.ledger import reserve, spend_key_budget
from batchrouter.server.batches.orders import Order
from batchrouter.server.batches.states import record_event
from batchrouter.server.config import SLA_TIER_S
from batchrouter.server.quoting.plan import Plan
from batchrouter.server.quoting.pricing import money_from_micro
from batchrouter.server.refusals import refusal
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import database_now_us
from batchrouter.server.storage.ids import new_id
from batchrouter.server.storage.tables import (
    batch_lanes,
    batches,
    files,
    idempotency_keys,
    quotes,
    workspaces,
)

__all__ = ["Purchase", "create_batch"]


@dataclass(frozen=True, slots=True)
class Purchase:
    """A wish to buy, of which only the shape is checked.

    Attributes:
        body_sha256: Of the body without its webhook.
        idempotency_key: As sent, or None.
        key_id: The API key, which may have a budget.
    """

    workspace_id: str
    order: Order
    body_sha256: str
    idempotency_key: str | None
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class _Inline:
    """Inline items: stored already, or why they cannot be."""

    file_id: str
    facts: ManifestFacts | None
    problem: APIError | None


def create_batch(services: Services, purchase: Purchase) -> tuple[str, bool]:
    """Buy a batch, once.

    Returns:
        The batch's id, and whether this is a replay of an earlier purchase under its key.

    Raises:
        APIError: Any of the contract's refusals; nothing was bought and nothing is kept.
        StoreFullError: There is no room for inline items.
    """
    inline = None
    if purchase.order.items is not None:
        # The cheap checks come first, so that a repeat or a late quote stores nothing.
        with services.database.reading() as conn:
            replayed = _replayed(conn, purchase)
            if replayed:
                return replayed, True
            _open_quote(conn, purchase)
        inline = _store_inline(services, purchase.order.items)
    try:
        with services.database.writing() as conn:
            replayed = _replayed(conn, purchase)
            batch_id = replayed or _buy(services, conn, purchase, inline)
            killpoints.reached("create.before_commit")
    except BaseException:
        _forget_inline(services, inline)
        raise
    killpoints.reached("create.after_commit")
    if replayed:
        _forget_inline(services, inline)
    return batch_id, replayed is not None


def _store_inline(services: Services, items: list[dict[str, Any]]) -> _Inline:
    file_id = new_file_id()
    most = services.config.limits.inline_items
    if len(items) > most:
        raise refusal(
            "invalid_request",
            f"items: {len(items):,} items, and {most:,} may stand in a request: upload a manifest",
        )
    try:
        return _Inline(file_id, store_items(services, file_id, items), None)
    except APIError as problem:
        return _Inline(file_id, None, problem)


def _forget_inline(services: Services, inline: _Inline | None) -> None:
    if inline is not None and inline.facts is not None:
        services.objects.delete(inline.facts.object_key)


def _replayed(conn: Connection, purchase: Purchase) -> str | None:
    """Find the batch that the key bought already."""
    if purchase.idempotency_key is None:
        return None
    bound = conn.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.workspace_id == purchase.workspace_id,
            idempotency_keys.c.key == purchase.idempotency_key,
        )
    ).one_or_none()
    if bound is None:
        return None
    if bound.body_sha256 != purchase.body_sha256:
        raise refusal(
            "idempotency_key_reused",
            "this Idempotency-Key bought a batch with another body: use a fresh key",
            batch_id=bound.batch_id,
        )
    return bound.batch_id


def _open_quote(conn: Connection, purchase: Purchase) -> Row[Any]:
    """Find the quote, and see that it can still be accepted as it was asked for."""
    quote = conn.execute(
        select(quotes).where(
            quotes.c.id == purchase.order.quote_id,
            quotes.c.workspace_id == purchase.workspace_id,
        )
    ).one_or_none()
    if quote is None:
        raise refusal("quote_not_found", "there is no such quote: quote again")
    if quote.accepted_batch_id is not None:
        raise refusal(
            "quote_lock_already_accepted",
            "this quote bought a batch already",
            batch_id=quote.accepted_batch_id,
        )
    if database_now_us(conn) >= quote.expires_at:
        raise refusal("quote_lock_expired", "the quote has expired: quote again")
    different = purchase.order.differences(json.loads(quote.request))
    if different:
        raise refusal(
            "quote_lock_mismatch",
            f"{', '.join(different)}: not as quoted; leave it out, or quote again",
            fields=different,
        )
    return quote


def _file(conn: Connection, purchase: Purchase, inline: _Inline | None) -> Row[Any]:
    if inline is not None:
        if inline.facts is None:
            assert inline.problem is not None
            raise inline.problem
        return insert_file(conn, purchase.workspace_id, inline.file_id, "items.jsonl", inline.facts)
    file = conn.execute(
        select(files).where(
            files.c.id == purchase.order.input_file_id,
            files.c.workspace_id == purchase.workspace_id,
            files.c.deleted_at.is_(None),
        )
    ).one_or_none()
    if file is None:
        raise refusal("file_not_found", "there is no such file: upload the manifest again")
    return file


def _buy(services: Services, conn: Connection, purchase: Purchase, inline: _Inline | None) -> str:
    quote = _open_quote(conn, purchase)
    plan = Plan.from_json(quote.plan)
    file = _file(conn, purchase, inline)
    check_fit(services.config, quote, plan, file)
    batch_id = new_id("batch")
    accepted = conn.execute(
        update(quotes)
        .where(quotes.c.id == quote.id, quotes.c.accepted_batch_id.is_(None))
        .values(accepted_batch_id=batch_id)
    )
    if accepted.rowcount != 1:
        raise refusal("quote_lock_already_accepted", "this quote was accepted just now")
    if not reserve(conn, purchase.workspace_id, quote.quoted_total_micro):
        raise _too_few_credits(conn, purchase, quote)
    left_micro = spend_key_budget(conn, purchase.key_id, batch_id, quote.quoted_total_micro)
    if left_micro is not None:
        raise _over_key_budget(quote, left_micro)
    _write_batch(services, conn, purchase, quote=quote, plan=plan, file=file, batch_id=batch_id)
    if purchase.idempotency_key is not None:
        conn.execute(
            idempotency_keys.insert().values(
                workspace_id=purchase.workspace_id,
                key=purchase.idempotency_key,
                body_sha256=purchase.body_sha256,
                batch_id=batch_id,
            )
        )
    record_event(conn, batch_id, "batch.submitted")
    if services.engine is not None:
        services.engine.enqueue(conn, batch_id)
    return batch_id


def _too_few_credits(conn: Connection, purchase: Purchase, quote: Row[Any]) -> APIError:
    balance = conn.execute(
        select(workspaces.c.balance_micro).where(workspaces.c.id == purchase.workspace_id)
    ).scalar_one()
    needed, there_is = money_from_micro(quote.quoted_total_micro), money_from_micro(balance)
    return refusal(
        "insufficient_credits",
        f"the quote reserves {needed['amount']} USD, and {there_is['amount']} USD are free",
        required=needed,
        available=there_is,
    )


def _over_key_budget(quote: Row[Any], left_micro: int) -> APIError:
    needed, there_is = money_from_micro(quote.quoted_total_micro), money_from_micro(left_micro)
    return refusal(
        "insufficient_credits",
        f"the quote reserves {needed['amount']} USD, and {there_is['amount']} USD are left of this"
        " API key's budget",
        required=needed,
        available=there_is,
    )


def _write_batch(
    services: Services,
    conn: Connection,
    purchase: Purchase,
    *,
    quote: Row[Any],
    plan: Plan,
    file: Row[Any],
    batch_id: str,
) -> None:
    order = purchase.order
    now = database_now_us(conn)
    request = json.loads(quote.request)
    webhook = order.webhook
    conn.execute(
        batches.insert().values(
            id=batch_id,
            workspace_id=purchase.workspace_id,
            quote_id=quote.id,
            file_id=file.id,
            state="queued",
            request=quote.request,
            metadata=json.dumps(order.metadata),
            total=file.item_count,
            quoted_total_micro=quote.quoted_total_micro,
            fee_bps=plan.fee_bps,
            webhook_url=webhook.url if webhook else None,
            webhook_secret_encrypted=services.vault.encrypt(webhook.secret) if webhook else None,
            deadline_at=now + SLA_TIER_S[request["sla_tier"]] * 1_000_000,
            created_at=now,
            updated_at=now,
        )
    )
    conn.execute(
        batch_lanes.insert(),
        [
            {
                "batch_id": batch_id,
                "position": position,
                "quote_lane_id": lane.quote_lane_id,
                "provider": lane.provider,
                "model": lane.model,
                "region": lane.region,
                "state": "queued",
                "first_item": lane.first_item,
                "item_count": lane.item_count,
                "quoted_subtotal_units": lane.subtotal_units,
            }
            for position, lane in enumerate(plan.lanes_for(file.item_count))
        ],
    )
