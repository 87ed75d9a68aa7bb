"""The price cap: what may be sent now, so that nothing is ever billed above the quote.

A chunk is sent only while what is settled, plus the worst case of what is in flight, plus its
own worst case, stays under the quoted total (contract section 5). A chunk that does not fit is
cut: alone in flight, to whatever fits; beside others, only when at least half of it fits, since
soon there will be more room. Items that do not fit even alone will never fit.
"""

from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from batchrouter.server.batches.ledger import ChunkOutcome, claim_chunk, settle_chunk
from batchrouter.server.quoting.pricing import units_from_micro, with_fee
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import batch_lanes, batches, chunks
from batchrouter.server.work.shop import Shop

__all__ = ["Admission", "Need", "admit"]


#: States in which a batch may send.
SENDING = frozenset({"routing", "running"})


class Admission(Enum):
    """What became of the wish to send a chunk; `WAIT` means: look again after the next change."""

    CLAIMED = "claimed"
    WAIT = "wait"
    CAPPED = "capped"


class Need:
    """The worst cases of a chunk's items, for any beginning of it.

    Args:
        worst_case_units: The most that each item can cost, without the fee.
        line_bytes: The bytes of each line in the manifest.
        fee_bps: The fee.
    """

    def __init__(
        self, worst_case_units: Sequence[int], line_bytes: Sequence[int], fee_bps: int
    ) -> None:
        self.count = len(worst_case_units)
        self._each = [with_fee(units, fee_bps) for units in worst_case_units]
        self._sums = [with_fee(units, fee_bps) for units in accumulate(worst_case_units, initial=0)]
        self._byte_ends = list(accumulate(line_bytes, initial=0))

    def units(self, count: int) -> int:
        """The worst case of the first ``count`` items, with the fee."""
        return self._sums[count]

    def bytes(self, count: int) -> int:
        """The bytes of the first ``count`` lines."""
        return self._byte_ends[count]

    def fitting(self, room_units: int) -> int:
        """How many items from the first one fit into the room together."""
        return bisect_right(self._sums, room_units) - 1

    def hopeless(self, room_units: int) -> int:
        """How many items from the first one do not fit even alone."""
        for nth, units in enumerate(self._each):
            if units <= room_units:
                return nth
        return self.count


def admit(shop: Shop, batch_id: str, number: int, need: Need) -> Admission:
    """Claim the chunk, or as much of it as may be sent now.

    What is cut off becomes a chunk of its own, enqueued in the same transaction.
    """
    with shop.database.writing() as conn:
        chunk = conn.execute(
            select(chunks).where(chunks.c.batch_id == batch_id, chunks.c.number == number)
        ).one()
        batch = conn.execute(
            select(
                batches.c.state,
                batches.c.quoted_total_micro,
                batches.c.settled_units,
                batches.c.in_flight_units,
            ).where(batches.c.id == batch_id)
        ).one()
        if batch.state not in SENDING or chunk.state not in {"planned", "sending"}:
            return Admission.WAIT  # it is no longer to be sent: the caller looks again
        others_units = batch.in_flight_units - chunk.reserved_units
        room_units = units_from_micro(batch.quoted_total_micro) - batch.settled_units - others_units
        count = min(need.count, need.fitting(room_units))
        if count < need.count and others_units and 2 * count < need.count:
            return Admission.WAIT
        if count == 0:
            count = need.hopeless(room_units)
            _cut_off(shop, conn, chunk, count, need)
            settle_chunk(conn, batch_id, number, ChunkOutcome("done", completed=0, failed=count))
            return Admission.CAPPED
        _cut_off(shop, conn, chunk, count, need)
        if not claim_chunk(conn, batch_id, number, need.units(count)):
            raise RuntimeError(f"chunk {number} of {batch_id} fits and was not claimed")
        conn.execute(
            update(batch_lanes)
            .where(
                batch_lanes.c.batch_id == batch_id,
                batch_lanes.c.position == chunk.lane_position,
                batch_lanes.c.state == "queued",
            )
            .values(state="running")
        )
        return Admission.CLAIMED


def _cut_off(shop: Shop, conn: Connection, chunk: Row[Any], count: int, need: Need) -> None:
    """Shorten the chunk to its first ``count`` items; the rest becomes the last chunk."""
    if count == chunk.item_count:
        return
    batch_id: str = chunk.batch_id
    byte_end: int = chunk.byte_start + need.bytes(count)
    conn.execute(
        update(chunks)
        .where(chunks.c.batch_id == batch_id, chunks.c.number == chunk.number)
        .values(item_count=count, byte_end=byte_end)
    )
    last = select(func.max(chunks.c.number)).where(chunks.c.batch_id == batch_id)
    number: int = conn.execute(last).scalar_one() + 1
    conn.execute(
        chunks.insert().values(
            batch_id=batch_id,
            number=number,
            lane_position=chunk.lane_position,
            first_item=chunk.first_item + count,
            item_count=chunk.item_count - count,
            byte_start=byte_end,
            byte_end=chunk.byte_end,
            state="planned",
            updated_at=now_us(),
        )
    )
    shop.enqueue_chunk(conn, batch_id, number)
