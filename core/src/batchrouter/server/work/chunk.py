"""The step of one chunk: admitted under the price cap, sent, stored, settled."""

from typing import Any, Literal

from sqlalchemy import Connection, Row, select, update

from batchrouter import killpoints
from batchrouter.money import usd_from_units
from batchrouter.server.batches import states
from batchrouter.server.batches.ledger import ChunkOutcome, settle_chunk
from batchrouter.server.lanes.gone import GoneLane
from batchrouter.server.lanes.lane import Lane
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import batch_lanes, batches, chunks
from batchrouter.server.work.admission import Admission, Need, admit
from batchrouter.server.work.lines import ArtifactWriter, split_lines
from batchrouter.server.work.order import Order, OrderError, load_order
from batchrouter.server.work.outputs import output_writer
from batchrouter.server.work.results import find_result, result_key, store_result
from batchrouter.server.work.sending import ChunkSender
from batchrouter.server.work.shop import Shop

__all__ = ["ChunkWork"]

#: How often a chunk that waits for room under the price cap looks again without being woken.
ROOM_WAIT_S = 1.0

_OPEN = ("planned", "sending")
StopReason = Literal["cancelled", "expired"]


class ChunkWork:
    """Brings one chunk to its end, from wherever a former process has left it.

    Args:
        shop: The tools.
        batch_id: The batch.
        number: The chunk's number in it.
    """

    def __init__(self, shop: Shop, batch_id: str, number: int) -> None:
        self._shop = shop
        self._batch_id = batch_id
        self._number = number
        self._this = (chunks.c.batch_id == batch_id, chunks.c.number == number)
        self._result_key = result_key(batch_id, number, shop.worker)
        self._need: Need | None = None

    def run(self) -> None:
        """Work until the chunk is settled.

        Raises:
            Suspended: The router is stopping; the next process goes on.
            OrderError: No lane of the batch is configured any more.
        """
        while not self._advance():
            self._shop.pulse.wait(ROOM_WAIT_S)

    def give_up(self) -> None:
        """End a chunk that fails again and again for a reason that is the router's own.

        It has no result; the artifact tells `provider_error` for its items.
        """
        with self._shop.database.writing() as conn:
            # What was never claimed and has no result would count as capped by the price.
            never_claimed = (*self._this, chunks.c.attempts == 0)
            conn.execute(update(chunks).where(*never_claimed).values(attempts=1))
            count = conn.execute(select(chunks.c.item_count).where(*self._this)).scalar_one()
        self._settle(ChunkOutcome("done", completed=0, failed=count))

    def _advance(self) -> bool:
        """Do what can be done now; False when it is to be looked at again after a wait."""
        self._shop.pulse.check()
        with self._shop.database.reading() as conn:
            chunk = self._row(conn)
            order = load_order(conn, self._batch_id, self._shop.config)
        if chunk.state not in _OPEN:
            # A process may have died between settling the last chunk and saying so.
            with self._shop.database.writing() as conn:
                _close_after_last(self._shop, conn, self._batch_id)
            return True
        reason = self._why_stop(order)
        if chunk.state == "planned" and reason is not None:
            self._settle(_unsent(reason, chunk.item_count))
            return True
        if chunk.state == "sending":
            summary = find_result(self._shop.objects, self._result_key)
            if summary is not None:
                self._settle(summary.outcome(self._result_key))
                return True
        # What was claimed before keeps its reservation: some lane may have all of its items, and
        # to cut it now would send them again under another name.
        if chunk.state == "planned":
            if self._need is None:
                self._need = self._shop.bench.do(lambda: self._reckon(order, chunk))
            killpoints.reached("work.before_claim")
            admission = admit(self._shop, self._batch_id, self._number, self._need)
            killpoints.reached("work.after_claim")
            if admission is not Admission.CLAIMED:
                self._need = self._need if admission is Admission.WAIT else None
                return False
        self._send(order, is_again=chunk.state == "sending")
        return True

    def _row(self, conn: Connection) -> Row[Any]:
        return conn.execute(select(chunks).where(*self._this)).one()

    def _reckon(self, order: Order, chunk: Row[Any]) -> Need:
        """Work out what the chunk's items can cost."""
        terms = order.terms(chunk.lane_position)
        lanes = self._lanes(order, chunk.lane_position)
        block = self._block(order, chunk)
        sizes = [len(line) + 1 for line in split_lines(block)]
        lines = order.reader().read(block, chunk.first_item)
        # The dearest of them: any may take over, at the same price a token.
        worst = [
            max(terms.subtotal(*lane.worst_case(line.item)) for lane in lanes) for line in lines
        ]
        return Need(worst, sizes, terms.fee_bps)

    def _block(self, order: Order, chunk: Row[Any]) -> bytes:
        start, end = chunk.byte_start, chunk.byte_end
        return self._shop.objects.get_range(order.manifest_key, start, end)

    def _lanes(self, order: Order, position: int) -> list[Lane]:
        """Return the chunk's lane and, after it, those that may take over."""
        planned = order.lanes[position]
        names = [(planned.provider, planned.model)]
        names += [(one.provider, one.model) for one in order.plan.fallback_order]
        lanes: list[Lane] = [
            self._shop.lanes.find(*name) or GoneLane(*name) for name in dict.fromkeys(names)
        ]
        if all(isinstance(lane, GoneLane) for lane in lanes):
            told = f"{planned.provider} is no longer configured, nor is any lane of its fallback"
            raise OrderError("provider_capacity_unavailable", told)
        return lanes

    def _send(self, order: Order, *, is_again: bool) -> None:
        with self._shop.database.reading() as conn:
            # Read again: it may have been cut when it was claimed.
            chunk = self._row(conn)
        lanes = self._lanes(order, chunk.lane_position)
        reader = order.reader()
        sender = ChunkSender(
            self._shop,
            self._batch_id,
            self._number,
            load=lambda: reader.read(self._block(order, chunk), chunk.first_item),
            first_item=chunk.first_item,
            item_count=chunk.item_count,
            lanes=lanes,
            terms=order.terms(chunk.lane_position),
            writer=ArtifactWriter(order.dialect, self._batch_id),
            to_output=output_writer(is_workflow=order.is_workflow),
            why_stop=lambda: self._why_stop(order),
            is_again=is_again,
        )
        written = sender.run()
        if is_again and not all(lane.remembers for lane in lanes):
            sender.summary.possibly_repeated = chunk.item_count
        store_result(self._shop.objects, self._result_key, written, sender.summary)
        outcome = sender.summary.outcome(self._result_key)
        self._settle(outcome, degraded_lane=chunk.lane_position if sender.is_degraded else None)

    def _why_stop(self, order: Order) -> StopReason | None:
        """Tell why nothing more may be sent: the batch is cancelled, or too late."""
        with self._shop.database.reading() as conn:
            wanted = select(batches.c.state).where(batches.c.id == self._batch_id)
            state = conn.execute(wanted).scalar_one()
        if state == "cancelling":
            return "cancelled"
        return "expired" if now_us() >= order.deadline_at else None

    def _settle(self, outcome: ChunkOutcome, *, degraded_lane: int | None = None) -> None:
        killpoints.reached("work.before_chunk_settled")
        with self._shop.database.writing() as conn:
            is_first = settle_chunk(conn, self._batch_id, self._number, outcome)
            if degraded_lane is not None:
                conn.execute(
                    update(batch_lanes)
                    .where(
                        batch_lanes.c.batch_id == self._batch_id,
                        batch_lanes.c.position == degraded_lane,
                    )
                    .values(state="degraded")
                )
            if not _close_after_last(self._shop, conn, self._batch_id):
                states.record_progress(conn, self._batch_id)
        if is_first and outcome.provider is not None:
            self._shop.metrics.count_items(
                outcome.provider,
                outcome.model or "",
                completed=outcome.completed,
                failed=outcome.failed + outcome.cancelled,
                cost_usd=usd_from_units(outcome.cost_units),
            )
        killpoints.reached("work.after_chunk_settled")
        self._shop.pulse.beat()


def _unsent(reason: StopReason, count: int) -> ChunkOutcome:
    if reason == "cancelled":
        return ChunkOutcome("cancelled", completed=0, failed=0, cancelled=count)
    return ChunkOutcome("expired", completed=0, failed=count)


def _close_after_last(shop: Shop, conn: Connection, batch_id: str) -> bool:
    """When no chunk is open any more, stop taking cancels and enqueue the end of the batch."""
    is_open = select(chunks.c.number).where(
        chunks.c.batch_id == batch_id, chunks.c.state.in_(_OPEN)
    )
    if conn.execute(is_open.limit(1)).first() is not None:
        return False
    states.move(conn, batch_id, "finalizing")
    shop.enqueue_finish(conn, batch_id)
    return True
