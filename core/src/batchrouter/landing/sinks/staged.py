"""A run's rows in one local file, before the table hears of them.

Rows come once, out of paid results, and a commit may have to be tried again; a landing that fails
in the middle shall not even have begun on the table. The file is in `tempfile.gettempdir()`
(`TMPDIR`), about as large as the rows are in Parquet, and goes at the end.
"""

import contextlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchrouter.errors import SinkError
from batchrouter.killpoints import reached
from batchrouter.landing.sinks.files import write_file
from batchrouter.manifest.arrow import Field, pq

_READ_ROWS = 8192


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Rows on the local disk.

    Attributes:
        path: A Parquet file.
        schema: Its columns.
        rows: How many.
    """

    path: Path
    schema: pa.Schema
    rows: int

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def reader(self, schema: pa.Schema | None = None) -> pa.RecordBatchReader:
        """Read the rows, with NULL in columns that they lack.

        Args:
            schema: The columns to give, in this order; those of the rows when it is None.
        """
        wanted = schema or self.schema
        return pa.RecordBatchReader.from_batches(wanted, self._batches(wanted))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        own = [name for name in schema.names if name in self.schema.names]
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=own):
                yield completed(batch, list(schema))


def completed(batch: pa.RecordBatch, fields: "Sequence[Field]") -> pa.RecordBatch:
    """Give these columns of a batch in this order, and NULL where it has none."""
    arrays: list[Any] = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in fields
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(list(fields)))


@contextlib.contextmanager
def staged(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema
) -> Generator[StagedRows, None, None]:
    """Write the rows to a local file, which goes at the end.

    Raises:
        SinkError: No room; what `batches` raises goes through.
    """
    reached("landing.before_write")
    with _refusing(), contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchrouter-landing-"))
        path = Path(folder, "rows.parquet")
        rows = write_file(path, batches, schema)
        # What the writer has freed is kept by Arrow, and the table's library needs some of its own.
        pa.default_memory_pool().release_unused()
        kept = stack.pop_all()
    with kept:
        yield StagedRows(path, schema, rows)


@contextlib.contextmanager
def _refusing() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"the rows cannot be written to {tempfile.gettempdir()}, where they wait for the"
            f" commit: {error.strerror or error}. The table is as it was: make room there, or set"
            " TMPDIR to a folder that has some"
        ) from error
