"""The last step of a batch: artifact, final state, money, event; then the leavings go."""

from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select, update

from batchrouter import killpoints
from batchrouter.server.batches import states
from batchrouter.server.storage.tables import batch_lanes, batches, chunks
from batchrouter.server.work.merging import merge
from batchrouter.server.work.order import load_order
from batchrouter.server.work.results import delete_results
from batchrouter.server.work.shop import Shop

__all__ = ["fail_batch", "finish_batch"]

Ending = Literal["succeeded", "failed", "cancelled", "expired"]


def finish_batch(shop: Shop, batch_id: str) -> None:
    """Merge and settle; done again after a crash it goes on from what is there.

    Raises:
        Suspended: The router is stopping.
        StoreFullError: There is no room for the artifact yet.
    """
    with shop.database.reading() as conn:
        batch = _row(conn, batch_id)
    if batch.state not in states.TERMINAL:
        with shop.database.reading() as conn:
            order = load_order(conn, batch_id, shop.config)
        artifact = merge(shop, order) if batch.completed or batch.failed else None
        killpoints.reached("work.before_settle")
        with shop.database.writing() as conn:
            ending, error = _ending(conn, _row(conn, batch_id))
            _end_lanes(conn, batch_id, ending)
            states.finish(conn, batch_id, ending, artifact=artifact, error=error)
        killpoints.reached("work.after_settle")
    delete_results(shop.objects, batch_id)
    shop.lanes.forget(batch_id)
    killpoints.reached("work.after_results_deleted")


def fail_batch(shop: Shop, batch_id: str, code: str, message: str) -> None:
    """End a batch that cannot be run; what was settled is charged."""
    with shop.database.writing() as conn:
        _end_lanes(conn, batch_id, "failed")
        states.finish(conn, batch_id, "failed", error=(code, message))
    shop.pulse.beat()


def _row(conn: Connection, batch_id: str) -> Row[Any]:
    return conn.execute(select(batches).where(batches.c.id == batch_id)).one()


def _ending(conn: Connection, batch: Row[Any]) -> tuple[Ending, tuple[str, str] | None]:
    """Decide how a batch ends whose chunks are all settled (contract section 5)."""
    if batch.state == "cancelling" and batch.cancelled:
        return "cancelled", None
    if batch.completed:
        return "succeeded", None
    expired = select(func.count()).where(chunks.c.batch_id == batch.id, chunks.c.state == "expired")
    if batch.state != "cancelling" and conn.execute(expired).scalar_one():
        return "expired", None
    told = f"none of {batch.total} items succeeded: the artifact tells why for each"
    return "failed", ("no_item_succeeded", told)


def _end_lanes(conn: Connection, batch_id: str, ending: Ending) -> None:
    state = "cancelled" if ending in {"cancelled", "expired"} else "succeeded"
    conn.execute(
        update(batch_lanes)
        .where(batch_lanes.c.batch_id == batch_id, batch_lanes.c.state.in_(("queued", "running")))
        .values(state=state)
    )
