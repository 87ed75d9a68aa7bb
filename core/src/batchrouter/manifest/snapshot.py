"""The row snapshot: which source row became which line, with what landing joins back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from batchrouter.job import Job
from batchrouter.manifest.arrow import Array, pc
from batchrouter.manifest.keys import HASH_VERSION, codes
from batchrouter.manifest.lines import REQUEST_START
from batchrouter.manifest.rendering import plain_type
from batchrouter.manifest.rows import PreparedRows
from batchrouter.manifest.slices import Slice

_HASH_PREFIX = f"{HASH_VERSION}-".encode()
_DIGEST_BYTES = 16
_SKIPPED = -1


def snapshot_schema(job: Job, source: pa.Schema) -> pa.Schema:
    """Give the columns of a row snapshot, in order.

    Returns:
        `_row` int64: the row's position in the source, over all parts, from 0.
        `_line` int64: the item's line in its part's manifest, from 0; NULL when the row was
            skipped, or repeats the request of another one.
        `_item_id` string: 26 characters, the item whose answer the row takes: its own, or that of
            the row whose request it repeats, which may stand in an earlier part. Its own for a
            skipped row.
        `_request_hash` string: `1-` and 26 characters; NULL when it was skipped.
        `_skip_reason` string: `null:<column>`; NULL when it was not skipped.
        Then the key columns and the kept ones, with the source's types (dictionaries and views
        as the types of their values).
    """
    added = [
        pa.field("_row", pa.int64(), nullable=False),
        pa.field("_line", pa.int64()),
        pa.field("_item_id", pa.string(), nullable=False),
        pa.field("_request_hash", pa.string()),
        pa.field("_skip_reason", pa.string()),
    ]
    names = dict.fromkeys([*job.key_columns, *job.keep])
    return pa.schema([*added, *(pa.field(n, plain_type(source.field(n).type)) for n in names)])


def request_digests(piece: Slice, digest: Callable[[bytes], bytes]) -> npt.NDArray[np.uint8]:
    """Hash each line of a slice without its item id; a row of 16 bytes for each."""
    ends = piece.ends - 1
    starts = piece.starts + REQUEST_START
    # No line of Python runs for a row: C calls C.
    requests: Any = map(piece.lines.__getitem__, map(slice, starts.tolist(), ends.tolist()))
    return _as_rows(b"".join(map(digest, requests)))


class SnapshotRows:
    """A batch's snapshot rows while its lines are written; handed out in order, each once."""

    def __init__(self, schema: pa.Schema, rows: PreparedRows, count: int) -> None:
        self._schema = schema
        self._rows = rows
        self._lines = np.full(count, _SKIPPED, np.int64)
        self.request_digests = np.zeros((count, _DIGEST_BYTES), np.uint8)
        """16 bytes of each request's hash; zeros for a row that is not sent."""
        self.is_unchanged = np.zeros(count, np.bool_)
        """Rows that are left out of the snapshot: the table holds them already."""
        self._next = 0

    def add_hashes(self, piece: Slice, sent: npt.NDArray[np.int64]) -> None:
        """Hash each line of a slice without its item id."""
        self.request_digests[sent] = request_digests(piece, xxhash.xxh3_128_digest)

    def number(self, sent: npt.NDArray[np.int64], first_line: int) -> None:
        """Note the lines of rows that were written in a run."""
        self._lines[sent] = np.arange(first_line, first_line + len(sent))

    def until(self, end: int) -> pa.RecordBatch:
        """Give the rows from the last call's end up to `end`, without the unchanged ones."""
        start, self._next = self._next, end
        rows = self.between(start, end)
        unchanged = self.is_unchanged[start:end]
        return rows.filter(pa.array(~unchanged)) if unchanged.any() else rows

    def unchanged(self, names: Sequence[str]) -> pa.RecordBatch:
        """Give some columns of the unchanged rows."""
        rows = self.between(0, len(self.is_unchanged))
        return rows.select(list(names)).filter(pa.array(self.is_unchanged))

    def between(self, start: int, end: int) -> pa.RecordBatch:
        """Give all rows of a range."""
        chosen = slice(start, end)
        count = end - start
        skipped = self._lines[chosen] == _SKIPPED
        first = self._rows.first_row + start
        hashes = codes(self.request_digests[chosen].tobytes(), _HASH_PREFIX)
        arrays = [
            pa.array(np.arange(first, first + count)),
            pa.array(self._lines[chosen], mask=skipped),
            self._rows.item_ids.slice(start, count),
            _masked(hashes, skipped),
            self._rows.skip_reasons.slice(start, count),
            *(column.slice(start, count) for column in self._rows.carried.values()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class StagedRows(SnapshotRows):
    """Snapshot rows that were made before, and lack only the numbers of their lines."""

    def __init__(
        self,
        schema: pa.Schema,
        rows: pa.RecordBatch,
        *,
        digests: bytes,
        request_digests: bytes,
        is_unchanged: npt.NDArray[np.bool_],
    ) -> None:
        self._schema = schema
        self._batch = rows
        self._digests = _as_rows(digests)
        self._takes_another = False
        self._lines = np.full(len(rows), _SKIPPED, np.int64)
        self.request_digests = _as_rows(request_digests)
        self.is_unchanged = is_unchanged
        self._next = 0

    def repeat(self, rows: npt.NDArray[np.int64], digests: bytes) -> None:
        """Let rows take the answers of other items, whose keys have these digests."""
        if not self._takes_another:
            self._digests = self._digests.copy()
            self._takes_another = True
        self._digests[rows] = _as_rows(digests)

    def between(self, start: int, end: int) -> pa.RecordBatch:
        """Give all rows of a range."""
        lines = self._lines[start:end]
        columns = self._batch.slice(start, end - start).columns
        columns[1] = pa.array(lines, mask=lines == _SKIPPED)
        if self._takes_another:
            columns[2] = codes(self._digests[start:end].tobytes())
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _as_rows(digests: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)


def _masked(texts: Array, nulls: npt.NDArray[np.bool_]) -> Array:
    return (
        pc.if_else(pa.array(nulls), pa.scalar(None, pa.string()), texts) if nulls.any() else texts
    )
