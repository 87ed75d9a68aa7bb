"""What every source is: a schema, and batches of bounded size."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

BATCH_ROWS = 4096
BATCH_BYTES = 8 << 20
"""A batch has at most BATCH_ROWS rows, and fewer when rows are wide."""


class Source(Protocol):
    """A table that is read column by column."""

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types; the same for every batch."""
        ...

    @property
    def version(self) -> str | None:
        """The version that is read, where the table has versions: given again, it is read again."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the source's order, with these columns in this order.

        Raises:
            SourceError: A file cannot be read, or lacks a column, or has it with another type.
        """
        ...


def sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch, without copies, so that none has more than BATCH_ROWS rows or is too wide."""
    widest = BATCH_BYTES * max(1, len(batch)) // max(1, batch.get_total_buffer_size())
    rows = max(64, min(BATCH_ROWS, widest))
    for start in range(0, len(batch), rows):
        yield batch.slice(start, rows)
