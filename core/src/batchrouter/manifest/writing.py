"""One batch of source rows → its lines, slice by slice, and its snapshot rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.errors import ManifestError
from batchrouter.job import Job
from batchrouter.manifest.bought import REQUEST_DIGESTS, BoughtRows
from batchrouter.manifest.keys import HASH_VERSION
from batchrouter.manifest.lines import line_shape, slots
from batchrouter.manifest.rows import PreparedRows, RowPreparer
from batchrouter.manifest.rowwriter import BadBodyError, RowWriter, line_writer
from batchrouter.manifest.slices import Slice
from batchrouter.manifest.snapshot import SnapshotRows, request_digests

_DIGEST_BYTES = 16

MAX_LINE_BYTES = 2**20
"""The router's limit of a line (contract section 2)."""


@dataclass(frozen=True, slots=True)
class BatchLines:
    """A batch that is ready to be put into parts.

    Attributes:
        first_row: The position of its first row in the source.
        row_count: Rows, skipped ones included.
        digests: 16 bytes of each row's key hash.
        slices: The lines, each slice with the rows (counted within the batch) that it holds;
            read once.
        snapshot: The snapshot rows; their hashes are there as far as `slices` was read.
    """

    first_row: int
    row_count: int
    digests: bytes
    slices: Iterator[tuple[Slice, npt.NDArray[np.int64]]]
    snapshot: SnapshotRows


class BatchWriter:
    """Writes batches of one job.

    Args:
        job: The job.
        schema: The snapshot's columns.
        bought: What the table holds; such rows get no line, and are left out of the snapshot.
    """

    def __init__(self, job: Job, schema: pa.Schema, bought: BoughtRows | None = None) -> None:
        shape = line_shape(job)
        self._rows = RowPreparer(job, slots(shape))
        self._writer = line_writer(shape)
        self._schema = schema
        self._bought = bought
        self.columns = self._rows.columns
        """The columns to read from the source."""

    @property
    def max_output_tokens(self) -> int | None:
        """The largest output cap of the rows' own bodies so far."""
        return self._writer.max_output_tokens if isinstance(self._writer, RowWriter) else None

    def lines_of(self, batch: pa.RecordBatch, first_row: int) -> BatchLines:
        """Check, key and render a batch; its lines are written as they are asked for.

        Raises:
            ManifestError: A row cannot become a request; also while the slices are read.
            NullKeyError: A key column holds NULL.
        """
        rows = self._rows.prepare(batch, first_row)
        snapshot = SnapshotRows(self._schema, rows, len(batch))
        slices = self._slices(rows, snapshot)
        return BatchLines(first_row, len(batch), rows.digests, slices, snapshot)

    def _slices(
        self, rows: PreparedRows, snapshot: SnapshotRows
    ) -> Iterator[tuple[Slice, npt.NDArray[np.int64]]]:
        digests = np.frombuffer(rows.digests, np.uint8).reshape(-1, _DIGEST_BYTES)
        try:
            for piece in self._writer.write(rows.slots):
                sent = rows.sent[piece.start : piece.start + len(piece.ends)]
                _refuse_long_lines(piece, sent, rows.first_row)
                snapshot.add_hashes(piece, sent)
                if self._bought is None:
                    yield piece, sent
                    continue
                is_bought = self._bought.holds(
                    digests[sent].tobytes(), _hasher(piece, snapshot.request_digests[sent])
                )
                snapshot.is_unchanged[sent[is_bought]] = True
                if not is_bought.all():
                    yield piece.only(~is_bought), sent[~is_bought]
        except BadBodyError as error:
            raise error.in_source(rows) from None


def _hasher(piece: Slice, digests: npt.NDArray[np.uint8]) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Hash a slice's requests by any version; by the newest one they are hashed already."""

    def hashed(version: int) -> npt.NDArray[np.uint8]:
        if version == HASH_VERSION:
            return digests
        return request_digests(piece, REQUEST_DIGESTS[version])

    return hashed


def _refuse_long_lines(piece: Slice, sent: npt.NDArray[np.int64], first_row: int) -> None:
    sizes = np.diff(piece.ends, prepend=0) - 1
    if len(sizes) and sizes.max() > MAX_LINE_BYTES:
        at = int(np.argmax(sizes > MAX_LINE_BYTES))
        raise ManifestError(
            f"row {first_row + int(sent[at])} (from 0) makes a line of {sizes[at]} bytes;"
            f" the router takes {MAX_LINE_BYTES}: shorten its text in the source"
        )
