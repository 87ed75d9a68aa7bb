"""The formats of files: each gives a file's columns and its rows, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import SourceError
from batchrouter.manifest.arrow import csv, pq
from batchrouter.manifest.jsonlines import JsonLinesReader
from batchrouter.manifest.sources.table import BATCH_BYTES, BATCH_ROWS

_BUFFER_BYTES = 1 << 20
_IPC_MAGIC = b"ARROW1"
_CSV_BLOCK_BYTES = 4 << 20


class Reader(Protocol):
    """One file."""

    schema: pa.Schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows with these columns, in this order."""
        ...


class ParquetReader:
    """Parquet, row group by row group."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        with self._file() as file:
            self.schema: pa.Schema = file.schema_arrow

    def _file(self) -> Any:
        # pre_buffer would hold the whole compressed file in memory.
        where = self._path if isinstance(self._fs, LocalFileSystem) else self._fs.open(self._path)
        return pq.ParquetFile(where, pre_buffer=False, buffer_size=_BUFFER_BYTES)

    def group_rows(self) -> list[int]:
        """Give the rows of each row group."""
        with self._file() as file:
            meta = file.metadata
            return [meta.row_group(at).num_rows for at in range(meta.num_row_groups)]

    def batches(self, columns: Sequence[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the file, or of one row group."""
        with self._file() as file:
            meta = file.metadata
            size = sum(meta.row_group(at).total_byte_size for at in range(meta.num_row_groups))
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES * max(1, meta.num_rows) // max(1, size)))
            groups = None if group is None else [group]
            yield from file.iter_batches(
                rows, columns=list(columns), use_threads=False, row_groups=groups
            )


class _CsvReader:
    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        with self._open(None) as reader:
            names = reader.schema.names
        if len(set(names)) < len(names):
            raise SourceError(f"source: {path}: two columns have one name; rename one")
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def _open(self, columns: Sequence[str] | None) -> Any:
        name = self._path.lower()
        types = {} if columns is None else dict.fromkeys(columns, pa.string())
        return csv.open_csv(
            self._fs.open(self._path, "rb", compression="infer"),
            csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
            csv.ParseOptions(delimiter="\t" if ".tsv" in name else ",", newlines_in_values=True),
            csv.ConvertOptions(
                check_utf8=False,  # the build names the row and the column
                column_types=types,
                include_columns=list(types),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._open(columns) as reader:
            yield from reader


class _IpcReader:
    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        with self._fs.open(path, "rb") as file:
            self._is_file = file.read(len(_IPC_MAGIC)) == _IPC_MAGIC
        with self._fs.open(path, "rb") as file:
            opened = pa.ipc.open_file(file) if self._is_file else pa.ipc.open_stream(file)
            self.schema: pa.Schema = opened.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = [self.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
        with self._fs.open(self._path, "rb") as file:
            if not self._is_file:
                yield from pa.ipc.open_stream(file, options=options)
                return
            opened = pa.ipc.open_file(file, options=options)
            for at in range(opened.num_record_batches):
                yield opened.get_batch(at)


READERS: dict[str, Any] = {
    "parquet": ParquetReader,
    "jsonl": JsonLinesReader,
    "csv": _CsvReader,
    "arrow": _IpcReader,
}
