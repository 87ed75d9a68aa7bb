"""What is let go of, and when: only what the contract says is kept no longer (section 2)."""

import shutil

from sqlalchemy import exists, or_, select, update

from batchrouter import killpoints
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import (
    batch_lanes,
    batches,
    chunks,
    events,
    files,
    idempotency_keys,
    lane_items,
    lane_submissions,
    quotes,
)

__all__ = ["clear_leftovers", "end_retention"]

_DAY_US = 86_400_000_000
#: No upload takes as long as that.
_LIVE_S = 86_400.0
_AT_ONCE = 200
"""How many a transaction takes: others wait for its end."""


def clear_leftovers(services: Services, *, before_s: float) -> None:
    """Delete what a killed process left: staged objects, spilled ids, manifests without a row.

    Where several processes share the state, what is younger than a day may be another one's.

    Args:
        services: The router, before it answers anybody.
        before_s: Unix time of this process's start.
    """
    oldest_living_s = before_s - _LIVE_S if services.database.is_shared else None
    services.objects.delete_unfinished(before_s=oldest_living_s or before_s)
    for spilled in services.folder.scratch.glob("*"):
        if oldest_living_s is None or spilled.stat().st_mtime < oldest_living_s:
            shutil.rmtree(spilled, ignore_errors=True)
    with services.database.reading() as conn:
        for key in services.objects.keys("manifests", before_s=oldest_living_s):
            kept = select(files.c.id).where(files.c.object_key == key, files.c.deleted_at.is_(None))
            if conn.execute(kept).first() is None:
                services.objects.delete(key)


def end_retention(services: Services) -> None:
    """Delete what has been kept for long enough, by `router.toml`'s `retention`.

    Unused uploads go after a week, manifests a week after the last batch over them ended,
    artifacts at the time that their batch names, events a month after they were made, quotes that
    bought nothing after 90 days. A batch itself goes after 400 days, with its quote, chunks and
    idempotency key, and answers 404 from then on; what it cost stays in its workspace's books.
    """
    for end_some in (_end_manifests, _end_artifacts, _end_events, _end_batches, _end_files):
        while end_some(services) == _AT_ONCE:
            pass
    with services.database.writing() as conn:
        conn.execute(
            quotes.delete().where(
                quotes.c.accepted_batch_id.is_(None),
                quotes.c.created_at < _ago_us(services.config.retention.quote_days),
            )
        )


def _ago_us(days: float) -> int:
    return now_us() - int(days * _DAY_US)


def _end_manifests(services: Services) -> int:
    """End some; returns how many."""
    retention = services.config.retention
    used = exists().where(batches.c.file_id == files.c.id)
    needed = exists().where(
        batches.c.file_id == files.c.id,
        or_(
            batches.c.completed_at.is_(None),
            batches.c.completed_at > _ago_us(retention.manifest_after_end_days),
        ),
    )
    over = or_(used, files.c.created_at < _ago_us(retention.unused_upload_days))
    with services.database.writing() as conn:
        ended = conn.execute(
            update(files)
            .where(
                files.c.id.in_(
                    select(files.c.id)
                    .where(files.c.deleted_at.is_(None), over, ~needed)
                    .limit(_AT_ONCE)
                )
            )
            .values(deleted_at=now_us())
            .returning(files.c.object_key)
        ).scalars()
        keys = list(ended)
        if keys:
            killpoints.reached("retention.before_mark")
    if not keys:
        return 0
    killpoints.reached("retention.after_mark")
    # An object that a kill leaves here has no live row, and goes at the next start.
    for key in keys:
        services.objects.delete(key)
    killpoints.reached("retention.after_manifests_deleted")
    return len(keys)


def _end_artifacts(services: Services) -> int:
    """End some; returns how many."""
    with services.database.reading() as conn:
        ended = conn.execute(
            select(batches.c.id, batches.c.artifact_key)
            .where(batches.c.artifact_key.is_not(None), batches.c.artifact_expires_at < now_us())
            .limit(_AT_ONCE)
        ).all()
    if not ended:
        return 0
    killpoints.reached("retention.before_artifacts_deleted")
    for batch in ended:
        services.objects.delete(batch.artifact_key)
    killpoints.reached("retention.after_artifacts_deleted")
    with services.database.writing() as conn:
        conn.execute(
            update(batches)
            .where(batches.c.id.in_([batch.id for batch in ended]))
            .values(artifact_key=None)
        )
    killpoints.reached("retention.after_artifacts_noted")
    return len(ended)


def _end_events(services: Services) -> int:
    """Delete some events that are delivered or given up on."""
    old = (
        select(events.c.id)
        .where(
            events.c.next_attempt_at.is_(None),
            events.c.created_at < _ago_us(services.config.retention.event_days),
        )
        .limit(_AT_ONCE)
    )
    with services.database.writing() as conn:
        return conn.execute(events.delete().where(events.c.id.in_(old))).rowcount


def _end_batches(services: Services) -> int:
    """Delete some batches with all that is theirs; their objects have gone before."""
    old = (
        select(batches.c.id, batches.c.quote_id)
        .where(
            batches.c.completed_at < _ago_us(services.config.retention.batch_days),
            batches.c.charged_micro.is_not(None),
            batches.c.artifact_key.is_(None),
            ~exists().where(
                events.c.batch_id == batches.c.id, events.c.next_attempt_at.is_not(None)
            ),
        )
        .order_by(batches.c.completed_at)
        .limit(_AT_ONCE)
    )
    with services.database.writing() as conn:
        ended = conn.execute(old).all()
        ids = [batch.id for batch in ended]
        for table in (chunks, batch_lanes, lane_items, lane_submissions, events, idempotency_keys):
            conn.execute(table.delete().where(table.c.batch_id.in_(ids)))
        conn.execute(batches.delete().where(batches.c.id.in_(ids)))
        conn.execute(quotes.delete().where(quotes.c.id.in_([batch.quote_id for batch in ended])))
        if ended:
            killpoints.reached("retention.before_batches_deleted")
    if ended:
        killpoints.reached("retention.after_batches_deleted")
    return len(ended)


def _end_files(services: Services) -> int:
    """Delete some rows of manifests that are gone, when no batch names them any more."""
    old = (
        select(files.c.id)
        .where(
            files.c.deleted_at < _ago_us(services.config.retention.unused_upload_days),
            ~exists().where(batches.c.file_id == files.c.id),
        )
        .limit(_AT_ONCE)
    )
    with services.database.writing() as conn:
        return conn.execute(files.delete().where(files.c.id.in_(old))).rowcount
