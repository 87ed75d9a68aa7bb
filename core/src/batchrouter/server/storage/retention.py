"""What is let go of, and when: only what the contract says is kept no longer (section 2)."""

import shutil

from sqlalchemy import exists, or_, select, update

from batchrouter import killpoints
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import batches, files, quotes

__all__ = ["clear_leftovers", "end_retention"]

_DAY_US = 86_400_000_000
_AT_ONCE = 500


def clear_leftovers(services: Services, *, before_s: float) -> None:
    """Delete what a killed process left: staged objects, spilled ids, manifests without a row.

    Args:
        services: The router, before it answers anybody.
        before_s: Unix time of this process's start.
    """
    services.objects.delete_unfinished(before_s=before_s)
    shutil.rmtree(services.folder.scratch, ignore_errors=True)
    with services.database.reading() as conn:
        for key in services.objects.keys("manifests"):
            kept = select(files.c.id).where(files.c.object_key == key, files.c.deleted_at.is_(None))
            if conn.execute(kept).first() is None:
                services.objects.delete(key)


def end_retention(services: Services) -> None:
    """Delete manifests and artifacts whose time is over, and old quotes that bought nothing.

    Unused uploads go after a week, manifests a week after the last batch over them ended,
    artifacts at the time that their batch names. Rows of files and batches stay, so that
    nothing that was bought is ever unknown.
    """
    while _end_manifests(services) == _AT_ONCE:
        pass
    while _end_artifacts(services) == _AT_ONCE:
        pass
    limits = services.config.limits
    with services.database.writing() as conn:
        conn.execute(
            quotes.delete().where(
                quotes.c.accepted_batch_id.is_(None),
                quotes.c.created_at < now_us() - limits.quote_days * _DAY_US,
            )
        )


def _end_manifests(services: Services) -> int:
    """End some; returns how many."""
    limits = services.config.limits
    now = now_us()
    used = exists().where(batches.c.file_id == files.c.id)
    needed = exists().where(
        batches.c.file_id == files.c.id,
        or_(
            batches.c.completed_at.is_(None),
            batches.c.completed_at > now - limits.manifest_after_end_days * _DAY_US,
        ),
    )
    over = or_(used, files.c.created_at < now - limits.unused_upload_days * _DAY_US)
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
            .values(deleted_at=now)
            .returning(files.c.object_key)
        ).scalars()
        keys = list(ended)
    killpoints.reached("retention.after_mark")
    # An object that a kill leaves here has no live row, and goes at the next start.
    for key in keys:
        services.objects.delete(key)
    return len(keys)


def _end_artifacts(services: Services) -> int:
    """End some; returns how many."""
    with services.database.reading() as conn:
        ended = conn.execute(
            select(batches.c.id, batches.c.artifact_key)
            .where(batches.c.artifact_key.is_not(None), batches.c.artifact_expires_at < now_us())
            .limit(_AT_ONCE)
        ).all()
    for batch in ended:
        services.objects.delete(batch.artifact_key)
    with services.database.writing() as conn:
        conn.execute(
            update(batches)
            .where(batches.c.id.in_([batch.id for batch in ended]))
            .values(artifact_key=None)
        )
    return len(ended)
