"""The rows of the outbox: which events are due, and what became of a try.

A try is written down before it is made: the row says when the next one is due, so that a
router that dies in mid-send tries again at that time, and never forgets an event.
"""

from dataclasses import dataclass, field

from sqlalchemy import func, select, update

from batchrouter.errors import ConfigError
from batchrouter.server.delivery.schedule import DeliverySchedule
from batchrouter.server.storage import tables
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.vault import Vault

__all__ = ["DueEvent", "Outbox"]

_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class DueEvent:
    """One event to try now.

    Attributes:
        id: ``evt_…``, the same at every try.
        body: The bytes to sign and to post, the same at every try.
        url: The receiver.
        secret: The receiver's secret, or None when it gave none; never shown.
        attempt: This try's number, from 1.
    """

    id: str
    body: bytes
    url: str
    secret: str | None = field(repr=False)
    attempt: int


class Outbox:
    """Reads and writes the ``events`` table for the courier; every method blocks briefly."""

    def __init__(self, database: Database, vault: Vault, schedule: DeliverySchedule) -> None:
        self._database = database
        self._vault = vault
        self._schedule = schedule

    def claim(self, limit: int) -> list[DueEvent]:
        """Take the events that are due, oldest first, and note their next tries.

        Args:
            limit: The most events to take.
        """
        events = tables.events
        is_due = events.c.next_attempt_at <= now_us()
        # Looked at without the write lock first: most of the time nothing is due.
        with self._database.reading() as conn:
            if conn.execute(select(events.c.id).where(is_due).limit(1)).first() is None:
                return []
        batches = tables.batches
        wanted = (
            select(
                events.c.id,
                events.c.body,
                events.c.attempts,
                batches.c.webhook_url,
                batches.c.webhook_secret_encrypted,
            )
            .join(batches, batches.c.id == events.c.batch_id)
            .where(is_due)
            .order_by(events.c.next_attempt_at, events.c.id)
            .limit(limit)
        )
        due: list[DueEvent] = []
        with self._database.writing() as conn:
            for event_id, body, attempts, url, encrypted in conn.execute(wanted).all():
                changed: dict[str, int | None] = {
                    "attempts": attempts + 1,
                    "next_attempt_at": now_us()
                    + int(self._schedule.wait_s(attempts + 1) * _US_PER_S),
                }
                if url is None or attempts >= self._schedule.attempts:
                    changed = {"next_attempt_at": None, "gave_up_at": now_us()}
                else:
                    due.append(DueEvent(event_id, body, url, self._secret(encrypted), attempts + 1))
                conn.execute(update(events).where(events.c.id == event_id).values(changed))
        return due

    def next_due_s(self) -> float | None:
        """Seconds until the next event is due, 0 when one is; None when the outbox is empty."""
        with self._database.reading() as conn:
            due_at = conn.execute(select(func.min(tables.events.c.next_attempt_at))).scalar()
        return None if due_at is None else max(0.0, (due_at - now_us()) / _US_PER_S)

    def delivered(self, event_id: str) -> None:
        """Note that the receiver has acknowledged the event."""
        self._end(event_id, "delivered_at")

    def refused(self, event: DueEvent, *, for_good: bool) -> None:
        """Note a failed try; after the last one, or for good, the event is given up."""
        if for_good or event.attempt >= self._schedule.attempts:
            self._end(event.id, "gave_up_at")

    def _end(self, event_id: str, column: str) -> None:
        ended = {"next_attempt_at": None, column: now_us()}
        with self._database.writing() as conn:
            events = tables.events
            conn.execute(update(events).where(events.c.id == event_id).values(ended))

    def _secret(self, encrypted: bytes | None) -> str | None:
        if encrypted is None:
            return None
        try:
            return self._vault.decrypt(encrypted)
        except ConfigError:
            # Another secret_key: an unsigned event is refused by every honest receiver, and
            # tried again in case the key comes back.
            return None
