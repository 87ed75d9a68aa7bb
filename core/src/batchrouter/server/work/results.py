"""A chunk's result: its artifact lines, and after them one line that sums them up.

The object is written whole before the chunk's row is touched. A chunk whose object exists was
answered: after a crash its row is settled from the summary, and nothing is sent again.
"""

from collections.abc import Iterator

import msgspec

from batchrouter import killpoints
from batchrouter.server.batches.ledger import ChunkOutcome
from batchrouter.server.storage.objects import Objects

__all__ = ["ChunkSummary", "delete_results", "find_result", "result_key", "store_result"]

_BLOCK_LINES = 500
#: A summary is a few hundred bytes; names of providers and models are 128 characters at most.
_MAX_SUMMARY_BYTES = 4096


class ChunkSummary(msgspec.Struct, kw_only=True):
    """What a chunk came to; see `ChunkOutcome` for the fields that both have."""

    first_item: int
    item_count: int
    lines_bytes: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_units: int = 0
    provider: str = ""
    model: str = ""
    possibly_repeated: int = 0

    def outcome(self, key: str) -> ChunkOutcome:
        """Turn it into what the ledger books."""
        return ChunkOutcome(
            # Of the failed ones; the batch asks whether its deadline has cost it anything.
            "expired" if self.expired else "done",
            completed=self.completed,
            failed=self.failed,
            cancelled=self.cancelled,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost_units=self.cost_units,
            result_key=key,
            result_bytes=self.lines_bytes,
            provider=self.provider,
            model=self.model,
            possibly_repeated=self.possibly_repeated,
        )


_decode = msgspec.json.Decoder(ChunkSummary).decode
_encode = msgspec.json.Encoder().encode


def result_key(batch_id: str, number: int, worker: str) -> str:
    """Name the object of a chunk's result.

    Each of several workers writes under its own name: one that was only stopped must not change
    what another one's row already names.
    """
    return f"work/{batch_id}/{number}{f'-{worker}' if worker else ''}.jsonl"


def store_result(objects: Objects, key: str, lines: list[bytes], summary: ChunkSummary) -> None:
    """Write the lines and their summary, durably and all at once.

    Raises:
        StoreFullError: There is no room; nothing is left behind.
    """
    summary.lines_bytes = sum(map(len, lines))
    killpoints.reached("work.before_result_stored")
    objects.put(key, _blocks(lines, summary))
    killpoints.reached("work.after_result_stored")


def _blocks(lines: list[bytes], summary: ChunkSummary) -> Iterator[bytes]:
    for start in range(0, len(lines), _BLOCK_LINES):
        yield b"".join(lines[start : start + _BLOCK_LINES])
    yield _encode(summary) + b"\n"


def find_result(objects: Objects, key: str) -> ChunkSummary | None:
    """Read the summary of a stored result; None when there is none."""
    size_bytes = objects.size_bytes(key)
    if size_bytes is None:
        return None
    tail = objects.get_range(key, max(0, size_bytes - _MAX_SUMMARY_BYTES), size_bytes)
    return _decode(tail.rstrip(b"\n").rpartition(b"\n")[2])


def delete_results(objects: Objects, batch_id: str) -> None:
    """Delete the results of chunks that the artifact holds."""
    for key in list(objects.keys(f"work/{batch_id}")):
        objects.delete(key)
