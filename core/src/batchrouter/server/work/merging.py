"""Chunk results become the artifact: in manifest order, streamed, one line for each line."""

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, select

from batchrouter import killpoints
from batchrouter.server.batches.states import Artifact
from batchrouter.server.storage.clock import now_us, rfc3339
from batchrouter.server.storage.tables import chunks
from batchrouter.server.work.lines import ArtifactWriter
from batchrouter.server.work.order import Order
from batchrouter.server.work.shop import Shop

__all__ = ["artifact_key", "merge"]

_US_PER_DAY = 24 * 3600 * 1_000_000

_UNSENT = {
    "cancelled": ("cancelled", "the batch was cancelled before this item was sent"),
    "expired": ("expired", "the deadline passed before this item was sent"),
}
_CAPPED = (
    "price_cap_reached",
    "the worst case of this item does not fit under the quoted total: cap its max_output_tokens",
)
_GIVEN_UP = ("provider_error", "the router could not carry this item out")


def artifact_key(batch_id: str) -> str:
    """Name the object of a batch's artifact."""
    return f"artifacts/{batch_id}.jsonl"


def merge(shop: Shop, order: Order) -> Artifact:
    """Write the artifact, durably; done again it replaces it by the same.

    Raises:
        StoreFullError: There is no room; nothing is left behind.
    """
    digest = hashlib.sha256()
    key = artifact_key(order.batch_id)
    killpoints.reached("work.before_merge")
    with shop.objects.open_writer(key) as artifact:
        for block in _blocks(shop, order):
            digest.update(block)
            artifact.write(block)
            shop.pulse.check()
        killpoints.reached("work.before_artifact_stored")
        artifact.commit()
        written_bytes = artifact.written_bytes
    killpoints.reached("work.after_artifact_stored")
    expires_at = now_us() + int(shop.config.retention.artifact_days * _US_PER_DAY)
    return Artifact(key, written_bytes, digest.hexdigest(), expires_at)


def _blocks(shop: Shop, order: Order) -> Iterator[bytes]:
    with shop.database.reading() as conn:
        rows = conn.execute(
            select(chunks).where(chunks.c.batch_id == order.batch_id).order_by(chunks.c.first_item)
        ).all()
    for chunk in rows:
        if chunk.result_key is not None:
            yield from shop.objects.stream(chunk.result_key, 0, chunk.result_bytes)
        else:
            yield _unsent_lines(shop, order, chunk)


def _unsent_lines(shop: Shop, order: Order, chunk: Row[Any]) -> bytes:
    """Write the lines of a chunk that no lane has answered."""
    code, message = _UNSENT.get(chunk.state) or (_GIVEN_UP if chunk.attempts else _CAPPED)
    block = shop.objects.get_range(order.manifest_key, chunk.byte_start, chunk.byte_end)
    writer = ArtifactWriter(order.dialect, order.batch_id)
    ended_at = rfc3339(chunk.updated_at)
    return b"".join(
        writer.failed(
            line,
            code,
            message,
            provider=None,
            model=None,
            attempt=0,
            completed_at=ended_at,
        )
        for line in order.id_reader().read(block, chunk.first_item)
    )
