"""Cutting a manifest into chunks: one pass over its bytes, nothing parsed.

A chunk is a contiguous range of lines of one lane. It is small enough to be held in memory
together with its answers, and large enough that the durable engine's own cost (some 20 ms a
chunk) does not show.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from batchrouter.server.quoting.plan import PlannedLane

__all__ = ["Span", "chunk_items", "cut"]

MAX_CHUNK_ITEMS = 4_000
MIN_CHUNK_ITEMS = 100
MAX_CHUNK_BYTES = 16 * 1024 * 1024

#: Bytes of answers that a chunk may be expected to hold in memory.
_ANSWER_BYTES = 32 * 1024 * 1024
_BYTES_PER_TOKEN = 5
#: 3,072 dimensions of some 21 digits and signs are the largest usual vector.
_EMBEDDING_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """A chunk's place: its items in the manifest, and their bytes [byte_start, byte_end)."""

    lane_position: int
    first_item: int
    item_count: int
    byte_start: int
    byte_end: int


def chunk_items(task: str, max_output_tokens: int) -> int:
    """Decide how many items a chunk may have, so that its answers stay small.

    Example:
        >>> chunk_items("responses", 64), chunk_items("embeddings", 0)
        (4000, 512)
    """
    answer_bytes = (
        _EMBEDDING_BYTES if task == "embeddings" else max_output_tokens * _BYTES_PER_TOKEN
    )
    return min(MAX_CHUNK_ITEMS, max(MIN_CHUNK_ITEMS, _ANSWER_BYTES // max(1, answer_bytes)))


def cut(
    blocks: Iterable[bytes],
    lanes: Sequence[PlannedLane],
    *,
    max_items: int,
    max_bytes: int = MAX_CHUNK_BYTES,
) -> Iterator[Span]:
    """Cut the manifest at line ends, at the lanes' borders, and at the two limits.

    Args:
        blocks: The manifest's bytes, in blocks of any size.
        lanes: Contiguous ranges that cover the manifest, in order.
        max_items: Lines of a chunk at most.
        max_bytes: A chunk ends with the line that reaches this many bytes.

    Yields:
        Spans in order, without a gap.
    """
    borders = [lane.first_item + lane.item_count for lane in lanes]
    lane = first_item = byte_start = 0
    item = line_end = 0
    for line_end in _line_ends(blocks):
        item += 1
        is_full = item - first_item >= max_items or line_end - byte_start >= max_bytes
        if is_full or item == borders[lane]:
            yield Span(lane, first_item, item - first_item, byte_start, line_end)
            first_item, byte_start = item, line_end
            while lane < len(borders) - 1 and item >= borders[lane]:
                lane += 1
    if item > first_item:
        yield Span(lane, first_item, item - first_item, byte_start, line_end)


def _line_ends(blocks: Iterable[bytes]) -> Iterator[int]:
    """Yield the offset after each line; the last line may lack its line feed."""
    offset = 0
    ended_at = 0
    for block in blocks:
        found = block.find(b"\n")
        while found >= 0:
            ended_at = offset + found + 1
            yield ended_at
            found = block.find(b"\n", found + 1)
        offset += len(block)
    if offset > ended_at:
        yield offset
