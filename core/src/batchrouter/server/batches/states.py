"""The states of a batch, and the only way to move between them.

    queued → routing → running → finalizing → succeeded
       └────────┴─────────┴────────┬──────────→ failed, expired
       └────────┴─────────┴→ cancelling ──────→ cancelled, succeeded, failed

A move is a conditional update inside the caller's writing transaction; the webhook event that
tells of it is written in the same transaction, its bytes final (contract section 7).
"""

import json
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, select, update

from batchrouter import killpoints
from batchrouter.money import format_units
from batchrouter.server.batches.ledger import settle_batch
from batchrouter.server.quoting.pricing import units_from_micro
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.ids import new_id
from batchrouter.server.storage.tables import batches, events

__all__ = [
    "CANCELLABLE",
    "STATES",
    "TERMINAL",
    "Artifact",
    "finish",
    "move",
    "record_event",
    "record_progress",
    "request_cancel",
]

State = Literal[
    "queued",
    "routing",
    "running",
    "finalizing",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
]

_SOURCES: dict[State, tuple[State, ...]] = {
    "queued": (),
    "routing": ("queued",),
    "running": ("routing",),
    "finalizing": ("queued", "routing", "running"),
    "cancelling": ("queued", "routing", "running"),
    "succeeded": ("finalizing", "cancelling"),
    "failed": ("queued", "routing", "running", "finalizing", "cancelling"),
    "cancelled": ("cancelling",),
    "expired": ("queued", "routing", "running", "finalizing"),
}

STATES = frozenset(_SOURCES)
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
CANCELLABLE = frozenset(_SOURCES["cancelling"])

_EVENT_TYPES = {
    "succeeded": "batch.completed",
    "failed": "batch.failed",
    "cancelled": "batch.cancelled",
    "expired": "batch.expired",
}
_PROGRESS_INTERVAL_US = 30_000_000


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact object: durable already when its batch ends."""

    key: str
    bytes: int
    sha256: str
    expires_at: int


def move(conn: Connection, batch_id: str, to: State) -> bool:
    """Move a batch to a state that is not terminal; False when it is not in a state before it."""
    if to in TERMINAL:
        raise ValueError(f"{to} is terminal: use finish()")
    moved = conn.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.state.in_(_SOURCES[to]))
        .values(state=to, updated_at=now_us())
    )
    return moved.rowcount == 1


def request_cancel(conn: Connection, batch_id: str) -> bool:
    """Move a batch to `cancelling`; False when it cannot be cancelled, or is being so already."""
    if not move(conn, batch_id, "cancelling"):
        return False
    conn.execute(
        update(batches).where(batches.c.id == batch_id).values(cancel_requested_at=now_us())
    )
    return True


def finish(
    conn: Connection,
    batch_id: str,
    to: Literal["succeeded", "failed", "cancelled", "expired"],
    *,
    artifact: Artifact | None = None,
    error: tuple[str, str] | None = None,
) -> bool:
    """End a batch: state, artifact, money and event, all in the caller's transaction.

    Args:
        conn: A writing transaction.
        batch_id: The batch.
        to: The terminal state.
        artifact: The output, complete or partial.
        error: Code and message, for a batch that failed.

    Returns:
        False, and nothing changed, when the batch has ended already or may not end so.
    """
    moved = conn.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.state.in_(_SOURCES[to]))
        .values(
            state=to,
            running=0,
            in_flight_units=0,
            updated_at=now_us(),
            completed_at=now_us(),
            artifact_key=artifact.key if artifact else None,
            artifact_bytes=artifact.bytes if artifact else None,
            artifact_sha256=artifact.sha256 if artifact else None,
            artifact_expires_at=artifact.expires_at if artifact else None,
            error=json.dumps({"code": error[0], "message": error[1]}) if error else None,
        )
    )
    if moved.rowcount != 1:
        return False
    settle_batch(conn, batch_id)
    record_event(conn, batch_id, _EVENT_TYPES[to])
    killpoints.reached("states.before_finish_commit")
    return True


def record_progress(conn: Connection, batch_id: str) -> bool:
    """Write a `batch.progress` event, at most one per 30 s and batch; tells whether it did."""
    now = now_us()
    due = conn.execute(
        update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.webhook_url.is_not(None),
            batches.c.progress_event_at.is_(None)
            | (batches.c.progress_event_at <= now - _PROGRESS_INTERVAL_US),
        )
        .values(progress_event_at=now)
    )
    if due.rowcount != 1:
        return False
    record_event(conn, batch_id, "batch.progress")
    return True


def record_event(conn: Connection, batch_id: str, event_type: str) -> None:
    """Write a webhook event as the batch stands now; nothing when it has no webhook."""
    batch = conn.execute(select(batches).where(batches.c.id == batch_id)).one()
    if batch.webhook_url is None:
        return
    now = now_us()
    event_id = new_id("evt")
    cost_units = min(batch.settled_units, units_from_micro(batch.quoted_total_micro))
    body = {
        "id": event_id,
        "type": event_type,
        "created": now // 1_000_000,
        "data": {
            "batch_id": batch_id,
            "state": batch.state,
            "items_total": batch.total,
            "items_completed": batch.completed,
            "items_failed": batch.failed,
            "cost_usd": format_units(cost_units),
            "output_file_url": f"/v1/batches/{batch_id}/artifact-url"
            if batch.state == "succeeded"
            else None,
        },
    }
    conn.execute(
        events.insert().values(
            id=event_id,
            batch_id=batch_id,
            type=event_type,
            body=json.dumps(body, separators=(",", ":")).encode(),
            created_at=now,
            attempts=0,
            next_attempt_at=now,
        )
    )
