"""The first step of a batch: cut it into chunks, and see to it that each is worked on."""

from sqlalchemy import func, select

from batchrouter import killpoints
from batchrouter.server.batches import states
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import batches, chunks
from batchrouter.server.work.chunking import chunk_items, cut
from batchrouter.server.work.order import OrderError, load_order
from batchrouter.server.work.shop import Shop

__all__ = ["plan_batch"]


def plan_batch(shop: Shop, batch_id: str) -> None:
    """Write the batch's chunks and enqueue them, in one transaction.

    Done again after a crash it finds the chunks there, or starts over.
    """
    with shop.database.writing() as conn:
        states.move(conn, batch_id, "routing")
        state = conn.execute(select(batches.c.state).where(batches.c.id == batch_id)).scalar_one()
        count = select(func.count()).select_from(chunks).where(chunks.c.batch_id == batch_id)
        if state in states.TERMINAL or conn.execute(count).scalar_one():
            return
        try:
            order = load_order(conn, batch_id, shop.config)
            order.reader()
        except OrderError as error:
            states.finish(conn, batch_id, "failed", error=(error.code, str(error)))
            return
    max_items = chunk_items(order.plan.task, order.plan.max_output_tokens)
    manifest = shop.objects.stream(order.manifest_key, 0, order.manifest_bytes)
    spans = shop.bench.do(lambda: list(cut(manifest, order.lanes, max_items=max_items)))
    if sum(span.item_count for span in spans) != order.total:
        with shop.database.writing() as conn:
            told = "the stored manifest does not hold the lines that were counted at its upload"
            states.finish(conn, batch_id, "failed", error=("manifest_damaged", told))
        return
    killpoints.reached("work.before_plan_stored")
    with shop.database.writing() as conn:
        now = now_us()
        rows = [
            {
                "batch_id": batch_id,
                "number": number,
                "lane_position": span.lane_position,
                "first_item": span.first_item,
                "item_count": span.item_count,
                "byte_start": span.byte_start,
                "byte_end": span.byte_end,
                "state": "planned",
                "updated_at": now,
            }
            for number, span in enumerate(spans)
        ]
        conn.execute(chunks.insert(), rows)
        for number in range(len(spans)):
            shop.enqueue_chunk(conn, batch_id, number)
        # A batch that is being cancelled stays so: its chunks end as cancelled.
        states.move(conn, batch_id, "running")
    killpoints.reached("work.after_plan_stored")
