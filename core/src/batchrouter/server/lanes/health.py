"""Whether a lane's provider answers: a circuit breaker that quotes look at.

Five failures in a row take the lane out of new quotes. A minute after the last failure it is let in
again; the next success closes the matter, the next failure takes it out for another minute.

A provider that is down fails every item that is sent, thousands in a second: while the lane is
out, a process writes that down again every five seconds only.
"""

import time
from collections.abc import Mapping

from sqlalchemy import select, update

from batchrouter.server.lanes.load import note_pace
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import lane_health

__all__ = ["LaneHealth", "unhealthy_lanes"]

FAILURES_TO_OPEN = 5
OPEN_FOR_S = 60.0
_WRITTEN_AGAIN_AFTER_S = 5.0
_MAX_REASON_CHARS = 300
_US = 1_000_000


class LaneHealth:
    """What is known of one lane's provider, over all processes.

    Args:
        database: The router's tables.
        provider: The lane's name.
    """

    def __init__(self, database: Database, provider: str) -> None:
        self._database = database
        self._provider = provider
        # Unknown at first: another process may have noted failures.
        self._may_have_failed = True
        self._failures = 0
        self._written_s = 0.0

    def failed(self, reason: str) -> None:
        """Note that the provider did not answer, or refused everything."""
        self._may_have_failed = True
        self._failures += 1
        is_fresh = time.monotonic() - self._written_s < _WRITTEN_AGAIN_AFTER_S
        if self._failures > FAILURES_TO_OPEN and is_fresh:
            return
        self._written_s = time.monotonic()
        mine = lane_health.c.provider == self._provider
        values = {"failed_at": now_us(), "reason": reason[:_MAX_REASON_CHARS]}
        with self._database.writing() as conn:
            change = update(lane_health).where(mine)
            changed = conn.execute(change.values(failures=lane_health.c.failures + 1, **values))
            if not changed.rowcount:
                conn.execute(
                    lane_health.insert().values(provider=self._provider, failures=1, **values)
                )

    def succeeded(self) -> None:
        """Note that the provider answered; writes only after a failure."""
        self._failures = 0
        if not self._may_have_failed:
            return
        mine = lane_health.c.provider == self._provider
        with self._database.writing() as conn:
            conn.execute(update(lane_health).where(mine).values(failures=0))
        self._may_have_failed = False

    def took(self, seconds_s: float) -> None:
        """Note how long a chunk took, from its arrival to its stored results."""
        note_pace(self._database, self._provider, seconds_s)


def unhealthy_lanes(database: Database) -> Mapping[str, str]:
    """Tell which lanes are taken out now, and why."""
    wanted = select(lane_health).where(
        lane_health.c.failures >= FAILURES_TO_OPEN,
        lane_health.c.failed_at > now_us() - int(OPEN_FOR_S * _US),
    )
    with database.reading() as conn:
        return {
            row.provider: f"has failed {row.failures} times in a row; last: {row.reason}"
            for row in conn.execute(wanted)
        }
