"""The row snapshot of a part: what was sent, in source order, with the columns to carry on."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import LandingError
from batchrouter.manifest.parts import REPEATED_ROWS

_BUFFER_BYTES = 1 << 20
_OWN = ("_row", "_line", "_item_id", "_request_hash", "_skip_reason")


class Snapshot:
    """One part's snapshot, read in batches; opening it reads only its footer.

    Args:
        fs: The run's filesystem.
        path: The Parquet file.
        carried: Names of the key and kept columns, in the table's order.

    Raises:
        LandingError: A column is not there.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, carried: Sequence[str]) -> None:
        self._fs = fs
        self._path = path
        with self._open() as file:
            schema = file.schema_arrow
            self.row_count: int = file.metadata.num_rows
            told = (file.metadata.metadata or {}).get(REPEATED_ROWS.encode(), b"0")
            self.repeated_count = int(told)
            """How many of the rows take the answer of another one."""
        absent = [name for name in (*_OWN, *carried) if name not in schema.names]
        if absent:
            raise LandingError(
                f"the row snapshot {path} has no column {', '.join(absent)}; build the run again"
            )
        self.schema = pa.schema([
            pa.field(each.name, each.type, each.nullable)
            for each in map(schema.field, (*_OWN, *carried))
        ])
        """The columns that are read."""
        # Only names and types: a source's metadata must not make two runs' tables differ.
        self.carried = [pa.field(name, schema.field(name).type) for name in carried]

    def batches(
        self, rows: int, *, groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most so many rows, in source order: all, or of some row groups."""
        columns = [*_OWN, *(field.name for field in self.carried)]
        chosen = None if groups is None else list(groups)
        with self._open() as file:
            yield from file.iter_batches(
                rows, row_groups=chosen, columns=columns, use_threads=False
            )

    def sent_by_group(self) -> list[int]:
        """Give how many rows of each row group were sent."""
        with self._open() as file:
            groups = range(file.metadata.num_row_groups)
            lines = (file.read_row_group(at, ["_line"], use_threads=False)[0] for at in groups)
            return [len(each) - each.null_count for each in lines]

    def first_and_last_row(self) -> tuple[int, int] | None:
        """Give the `_row` of the first row and of the last one; None without any."""
        if not self.row_count:
            return None
        with self._open() as file:
            ends = (0, file.metadata.num_row_groups - 1)
            first, last = (file.read_row_group(at, ["_row"], use_threads=False)[0] for at in ends)
            return int(first[0].as_py()), int(last[-1].as_py())

    def sent_item_ids(self) -> Iterator["pa.Array[Any]"]:
        """Yield the item ids of the rows that were sent, in the order of their lines."""
        with self._open() as file:
            for batch in file.iter_batches(columns=["_line", "_item_id"], use_threads=False):
                yield batch.column("_item_id").filter(pc.is_valid(batch.column("_line")))

    def item_ids(self) -> Iterator[tuple["pa.Array[Any]", "pa.Array[Any]"]]:
        """Yield the item ids of rows that were sent, and of those that repeat a request."""
        columns = ["_line", "_item_id", "_skip_reason"]
        with self._open() as file:
            for batch in file.iter_batches(columns=columns, use_threads=False):
                is_sent = pc.is_valid(batch.column("_line"))
                is_skipped = pc.is_valid(batch.column("_skip_reason"))
                ids = batch.column("_item_id")
                yield ids.filter(is_sent), ids.filter(pc.invert(pc.or_(is_sent, is_skipped)))

    def _open(self) -> pq.ParquetFile:
        is_local = isinstance(self._fs, LocalFileSystem)
        where = self._path if is_local else cast("Any", self._fs.open(self._path, "rb"))
        # pre_buffer=True, the default, would hold the whole compressed file.
        return pq.ParquetFile(where, pre_buffer=False, buffer_size=_BUFFER_BYTES)
