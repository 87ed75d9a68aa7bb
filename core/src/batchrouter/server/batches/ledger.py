"""The money: what is reserved, what may still be spent, what is settled and charged.

Every function runs inside the caller's writing transaction and decides by a conditional
update, so that doing it twice changes nothing. The invariants:

- `balance + reserved + spent` of a workspace never changes here;
- `settled + in flight` of a batch never passes its quoted total while a chunk is claimed;
- a batch is charged once, and `charged + released` is exactly what was reserved.
"""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, select, update

from batchrouter.server.quoting.pricing import micro_from_units, units_from_micro, with_fee
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import (
    batch_lanes,
    batches,
    chunks,
    key_limits,
    key_purchases,
    workspaces,
)

__all__ = [
    "ChunkOutcome",
    "Settlement",
    "claim_chunk",
    "reserve",
    "return_chunk",
    "settle_batch",
    "settle_chunk",
    "spend_key_budget",
]


@dataclass(frozen=True, slots=True)
class ChunkOutcome:
    """What became of a chunk; the three counts add up to its items.

    Attributes:
        state: `done` (a provider answered, or its items failed), `cancelled` (nothing was sent),
            `expired` (the deadline passed before all of it was answered).
        completed: Items with an output.
        failed: Items with an error other than `cancelled`.
        cancelled: Items that were never run because the batch was cancelled.
        cost_units: What the provider takes, without the fee, in 10^-12 dollar.
        result_key: The object with the chunk's artifact lines.
        possibly_repeated: Items that may have been sent more than once.
    """

    state: Literal["done", "cancelled", "expired"]
    completed: int
    failed: int
    cancelled: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_units: int = 0
    result_key: str | None = None
    result_bytes: int | None = None
    provider: str | None = None
    model: str | None = None
    possibly_repeated: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a batch's money: charged + released = reserved, in micro-dollars.

    `overrun_units` is what providers billed beyond the quote: shown, never charged.
    """

    charged_micro: int
    released_micro: int
    overrun_units: int


def reserve(conn: Connection, workspace_id: str, amount_micro: int) -> bool:
    """Move credits from the balance to the reserve; False, and nothing moved, when too few."""
    moved = conn.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, workspaces.c.balance_micro >= amount_micro)
        .values(
            balance_micro=workspaces.c.balance_micro - amount_micro,
            reserved_micro=workspaces.c.reserved_micro + amount_micro,
        )
    )
    return moved.rowcount == 1


def spend_key_budget(conn: Connection, key_id: str, batch_id: str, amount_micro: int) -> int | None:
    """Book a batch on its key's budget, if the key has one.

    Returns:
        None when it is booked, or there is no budget; else what is left of it, in micro-dollars,
        and nothing was booked.
    """
    budget_micro = conn.execute(
        select(key_limits.c.budget_micro).where(key_limits.c.key_id == key_id)
    ).scalar_one_or_none()
    if budget_micro is None:
        return None
    booked = select(func.coalesce(func.sum(key_purchases.c.amount_micro), 0))
    left_micro = budget_micro - int(
        conn.execute(booked.where(key_purchases.c.key_id == key_id)).scalar_one()
    )
    if amount_micro > left_micro:
        return left_micro
    conn.execute(
        key_purchases.insert().values(batch_id=batch_id, key_id=key_id, amount_micro=amount_micro)
    )
    return None


def claim_chunk(conn: Connection, batch_id: str, number: int, worst_case_units: int) -> bool:
    """Mark a chunk as being sent, if its worst case fits under the quoted total.

    A chunk that is already `sending` (the process died in mid-send) is claimed again, with the
    new worst case in place of the old one.

    Args:
        conn: A writing transaction.
        batch_id: The batch.
        number: The chunk's number in the batch.
        worst_case_units: The most it can cost, with the fee (contract section 5).

    Returns:
        False when it does not fit now, when the batch no longer sends (not `routing` or
        `running`), or when the chunk is settled; nothing is changed then.
    """
    chunk = conn.execute(
        select(chunks.c.state, chunks.c.reserved_units, chunks.c.item_count).where(
            chunks.c.batch_id == batch_id, chunks.c.number == number
        )
    ).one()
    if chunk.state not in {"planned", "sending"}:
        return False
    more_units = worst_case_units - chunk.reserved_units
    quoted_micro = conn.execute(
        select(batches.c.quoted_total_micro).where(batches.c.id == batch_id)
    ).scalar_one()
    # The room is computed here: in SQL a huge worst case would overflow into a float.
    room_units = units_from_micro(quoted_micro) - more_units
    if room_units < 0:
        return False
    starting = chunk.item_count if chunk.state == "planned" else 0
    claimed = conn.execute(
        update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.state.in_(("routing", "running")),
            batches.c.settled_units + batches.c.in_flight_units <= room_units,
        )
        .values(
            in_flight_units=batches.c.in_flight_units + more_units,
            running=batches.c.running + starting,
            updated_at=now_us(),
        )
    )
    if claimed.rowcount != 1:
        return False
    conn.execute(
        update(chunks)
        .where(chunks.c.batch_id == batch_id, chunks.c.number == number)
        .values(
            state="sending",
            attempts=chunks.c.attempts + 1,
            reserved_units=worst_case_units,
            updated_at=now_us(),
        )
    )
    return True


def return_chunk(conn: Connection, batch_id: str, number: int) -> bool:
    """Put a chunk that was claimed and certainly not run back to `planned`; False if it is not."""
    chunk = conn.execute(
        select(chunks.c.reserved_units, chunks.c.item_count).where(
            chunks.c.batch_id == batch_id, chunks.c.number == number, chunks.c.state == "sending"
        )
    ).one_or_none()
    if chunk is None:
        return False
    conn.execute(
        update(chunks)
        .where(chunks.c.batch_id == batch_id, chunks.c.number == number)
        .values(state="planned", reserved_units=0, updated_at=now_us())
    )
    conn.execute(
        update(batches)
        .where(batches.c.id == batch_id)
        .values(
            in_flight_units=batches.c.in_flight_units - chunk.reserved_units,
            running=batches.c.running - chunk.item_count,
            updated_at=now_us(),
        )
    )
    return True


def settle_chunk(conn: Connection, batch_id: str, number: int, outcome: ChunkOutcome) -> bool:
    """Book a chunk's outcome on the chunk, its lane and its batch, once.

    Returns:
        False, and nothing changed, when the chunk is settled already.

    Raises:
        ValueError: The outcome would give money back.
    """
    if outcome.cost_units < 0:
        raise ValueError("a chunk cannot cost less than nothing")
    chunk = conn.execute(
        select(chunks).where(
            chunks.c.batch_id == batch_id,
            chunks.c.number == number,
            chunks.c.state.in_(("planned", "sending")),
        )
    ).one_or_none()
    if chunk is None:
        return False
    conn.execute(
        update(chunks)
        .where(chunks.c.batch_id == batch_id, chunks.c.number == number)
        .values(
            state=outcome.state,
            reserved_units=0,
            result_key=outcome.result_key,
            result_bytes=outcome.result_bytes,
            completed=outcome.completed,
            failed=outcome.failed + outcome.cancelled,
            input_tokens=outcome.input_tokens,
            output_tokens=outcome.output_tokens,
            cost_units=outcome.cost_units,
            provider=outcome.provider,
            model=outcome.model,
            updated_at=now_us(),
        )
    )
    conn.execute(
        update(batch_lanes)
        .where(batch_lanes.c.batch_id == batch_id, batch_lanes.c.position == chunk.lane_position)
        .values(
            completed=batch_lanes.c.completed + outcome.completed,
            failed=batch_lanes.c.failed + outcome.failed + outcome.cancelled,
            settled_subtotal_units=batch_lanes.c.settled_subtotal_units + outcome.cost_units,
            input_tokens=batch_lanes.c.input_tokens + outcome.input_tokens,
            output_tokens=batch_lanes.c.output_tokens + outcome.output_tokens,
        )
    )
    was_running = chunk.item_count if chunk.state == "sending" else 0
    conn.execute(
        update(batches)
        .where(batches.c.id == batch_id)
        .values(
            in_flight_units=batches.c.in_flight_units - chunk.reserved_units,
            settled_units=_settled_units(conn, batch_id),
            running=batches.c.running - was_running,
            completed=batches.c.completed + outcome.completed,
            failed=batches.c.failed + outcome.failed,
            cancelled=batches.c.cancelled + outcome.cancelled,
            possibly_repeated=batches.c.possibly_repeated + outcome.possibly_repeated,
            updated_at=now_us(),
        )
    )
    return True


def settle_batch(conn: Connection, batch_id: str) -> Settlement | None:
    """Charge what was settled, at most the quote, and release the rest; once.

    Returns:
        None, and nothing changed, when the batch is settled already.
    """
    batch = conn.execute(
        select(batches.c.workspace_id, batches.c.quoted_total_micro, batches.c.settled_units).where(
            batches.c.id == batch_id
        )
    ).one()
    quoted_micro = batch.quoted_total_micro
    charged_micro = min(micro_from_units(batch.settled_units), quoted_micro)
    settlement = Settlement(
        charged_micro=charged_micro,
        released_micro=quoted_micro - charged_micro,
        overrun_units=max(0, batch.settled_units - units_from_micro(quoted_micro)),
    )
    settled = conn.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.charged_micro.is_(None))
        .values(
            charged_micro=settlement.charged_micro,
            released_micro=settlement.released_micro,
            overrun_units=settlement.overrun_units,
        )
    )
    if settled.rowcount != 1:
        return None
    conn.execute(
        update(workspaces)
        .where(workspaces.c.id == batch.workspace_id)
        .values(
            reserved_micro=workspaces.c.reserved_micro - quoted_micro,
            spent_micro=workspaces.c.spent_micro + settlement.charged_micro,
            balance_micro=workspaces.c.balance_micro + settlement.released_micro,
        )
    )
    conn.execute(
        update(key_purchases)
        .where(key_purchases.c.batch_id == batch_id)
        .values(amount_micro=settlement.charged_micro)
    )
    return settlement


def _settled_units(conn: Connection, batch_id: str) -> int:
    """Sum the lanes with their fees: the fee is rounded up per lane, never per chunk."""
    fee_bps = conn.execute(select(batches.c.fee_bps).where(batches.c.id == batch_id)).scalar_one()
    subtotals = conn.execute(
        select(batch_lanes.c.settled_subtotal_units).where(batch_lanes.c.batch_id == batch_id)
    ).scalars()
    return sum(with_fee(subtotal, fee_bps) for subtotal in subtotals)
