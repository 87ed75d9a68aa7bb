"""How often one key may call: a token bucket a key, refilled evenly over the minute."""

import time
from typing import Protocol

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert

from batchrouter.server.refusals import refusal
from batchrouter.server.storage.clock import database_now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import key_calls

__all__ = ["OwnRateLimit", "RateLimit", "SharedRateLimit"]

_MINUTE_S = 60.0
_MAX_KEYS = 10_000
_US = 1_000_000
_MILLI = 1000


class RateLimit(Protocol):
    """Admits so many calls a minute and key."""

    def admit(self, key_id: str, per_minute: int) -> None:
        """Count a call; 0 a minute admits all.

        Raises:
            APIError: `rate_limited`, with the seconds after which one more call fits.
        """
        ...


class OwnRateLimit:
    """The buckets of a process that answers alone.

    Example:
        >>> limit = OwnRateLimit()
        >>> limit.admit("key", 1, now_s=0.0)
        >>> limit.admit("key", 1, now_s=60.0)
    """

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, key_id: str, per_minute: int, *, now_s: float | None = None) -> None:
        """See `RateLimit.admit`."""
        if not per_minute:
            return
        now = time.monotonic() if now_s is None else now_s
        left, since = self._buckets.get(key_id, (float(per_minute), now))
        left = _refilled(left, now - since, per_minute)
        if left < 1:
            self._buckets[key_id] = (left, now)
            raise _refusal(left, per_minute)
        if len(self._buckets) >= _MAX_KEYS:
            self._buckets.clear()
        self._buckets[key_id] = (left - 1, now)


class SharedRateLimit:
    """The buckets of all API processes on one database.

    Args:
        database: Holds them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def admit(self, key_id: str, per_minute: int) -> None:
        """See `RateLimit.admit`."""
        if not per_minute:
            return
        mine = key_calls.c.key_id == key_id
        # Not by `writing`: a call must not wait for whoever writes something else.
        with self._database.engine.begin() as conn:
            now = database_now_us(conn)
            full = {"key_id": key_id, "left_milli": per_minute * _MILLI, "refilled_at": now}
            conn.execute(insert(key_calls).values(full).on_conflict_do_nothing())
            # Locked: of two calls at once, the second one counts from what the first one left.
            row = conn.execute(select(key_calls).where(mine).with_for_update()).one()
            elapsed_s = (database_now_us(conn) - row.refilled_at) / _US
            left = _refilled(row.left_milli / _MILLI, max(0.0, elapsed_s), per_minute)
            if left < 1:
                raise _refusal(left, per_minute)
            kept = {"left_milli": int((left - 1) * _MILLI), "refilled_at": database_now_us(conn)}
            conn.execute(update(key_calls).where(mine).values(kept))


def _refilled(left: float, elapsed_s: float, per_minute: int) -> float:
    return min(per_minute, left + elapsed_s * per_minute / _MINUTE_S)


def _refusal(left: float, per_minute: int) -> Exception:
    return refusal(
        "rate_limited",
        f"over {per_minute} calls a minute with this key",
        retry_after_s=max(1.0, (1 - left) * _MINUTE_S / per_minute),
    )
