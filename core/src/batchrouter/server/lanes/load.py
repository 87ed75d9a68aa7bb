"""How busy a lane is: what waits there, and how long its provider has lately taken over a chunk.

Quotes estimate by it when a lane would be done, and leave out one that would be too late. What
waits is read from the open batches. What a chunk takes, from the moment that the lane has it until
its results are stored, is a moving mean. It is forgotten after a day, so that a lane which was slow
once, and has had no work since, is tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Float, cast, func, select, update

from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import batch_lanes, batches, lane_pace

__all__ = ["IDLE", "LaneLoad", "lane_loads", "note_pace"]

REMEMBERED_S = 24 * 3600.0
_KEPT = 4
"""Each new one moves the mean by a quarter."""
_US = 1_000_000
_MS = 1_000


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What is known of a lane's load.

    Attributes:
        waiting_items: Items of open batches, of all workspaces, that are quoted there and not done.
        chunk_s: The seconds that a chunk has lately taken there; 0 when nothing is known.
    """

    waiting_items: int = 0
    chunk_s: float = 0.0


IDLE = LaneLoad()


def note_pace(database: Database, provider: str, seconds_s: float) -> None:
    """Note how long a lane took over a chunk."""
    took_ms = int(seconds_s * _MS)
    mine = lane_pace.c.provider == provider
    moved = (lane_pace.c.chunk_ms * (_KEPT - 1) + took_ms) // _KEPT
    with database.writing() as conn:
        changed = conn.execute(
            update(lane_pace).where(mine).values(chunk_ms=moved, noted_at=now_us())
        )
        if not changed.rowcount:
            conn.execute(
                lane_pace.insert().values(provider=provider, chunk_ms=took_ms, noted_at=now_us())
            )


def lane_loads(database: Database) -> Mapping[str, LaneLoad]:
    """Tell how busy each lane is that is not idle, by its name."""
    done = batches.c.completed + batches.c.failed + batches.c.cancelled
    # Of a batch that is split, each lane is taken to be as far as the whole.
    left = cast(batch_lanes.c.item_count, Float) * (batches.c.total - done) / batches.c.total
    wanted = (
        select(batch_lanes.c.provider, func.sum(left))
        .join(batches, batches.c.id == batch_lanes.c.batch_id)
        .where(batches.c.completed_at.is_(None), batches.c.total > 0)
        .group_by(batch_lanes.c.provider)
    )
    fresh = lane_pace.c.noted_at > now_us() - int(REMEMBERED_S * _US)
    with database.reading() as conn:
        waiting = {provider: int(items) for provider, items in conn.execute(wanted)}
        known = conn.execute(select(lane_pace).where(fresh))
        paces = {row.provider: row.chunk_ms / _MS for row in known}
    return {
        provider: LaneLoad(waiting.get(provider, 0), paces.get(provider, 0.0))
        for provider in waiting.keys() | paces.keys()
    }
