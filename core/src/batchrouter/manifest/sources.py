"""Anything that is a table → Arrow record batches, one after the other, in flat memory."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import SourceError
from batchrouter.job import Job
from batchrouter.job.problems import did_you_mean
from batchrouter.manifest.arrow import Array, DataType, Field, csv, pq
from batchrouter.manifest.jsonlines import JsonLinesReader
from batchrouter.manifest.listing import SourceFile, list_files, reading

BATCH_ROWS = 4096
BATCH_BYTES = 8 << 20
"""A batch has at most BATCH_ROWS rows, and fewer when rows are wide."""

_BUFFER_BYTES = 1 << 20
_IPC_MAGIC = b"ARROW1"
_CSV_BLOCK_BYTES = 4 << 20
_INT64 = 2**63


class Source(Protocol):
    """A table that is read column by column."""

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types; the same for every batch."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the source's order, with these columns in this order.

        Raises:
            SourceError: A file cannot be read, or lacks a column, or has it with another type.
        """
        ...


def open_source(job: Job) -> Source:
    """Open a job's source; of files only the first one's schema is read.

    Files are Parquet, JSON lines, CSV (every column is text: the format has no types; an empty
    field is NULL, `""` is empty text) and Arrow IPC. Folders named `day=2026-11-22` become
    columns, text or int64.

    Raises:
        SourceError: There is no such table, or it cannot be read.
    """
    source = job.resolved_source
    return FileSource(source) if isinstance(source, str) else _MemorySource(source)


class _Reader(Protocol):
    schema: pa.Schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]: ...


class _ParquetReader:
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


_READERS: dict[str, Any] = {
    "parquet": _ParquetReader,
    "jsonl": JsonLinesReader,
    "csv": _CsvReader,
    "arrow": _IpcReader,
}


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a table that can be read by itself: one row group of one file."""

    file: int
    group: int
    first_row: int
    row_count: int


class FileSource:
    """Files of one format that make one table."""

    def __init__(self, url: str) -> None:
        self._fs, self._files = list_files(url)
        self._partitions = _partition_fields(self._files)
        self._first = self._reader(self._files[0])
        own = [each for each in self._first.schema if each.name not in self._partitions]
        # A folder's name wins over a column in the file, as in Spark and DuckDB.
        self.schema = pa.schema([*own, *self._partitions.values()])

    @property
    def paths(self) -> list[str]:
        """The files, in order."""
        return [file.path for file in self._files]

    def shares(self) -> list[Share]:
        """Cut the table at its row groups; empty where its format has none."""
        shares: list[Share] = []
        row = 0
        for index, file in enumerate(self._files):
            with reading(file.path):
                reader = self._first if index == 0 else self._reader(file)
                if not isinstance(reader, _ParquetReader):
                    return []
                for group, count in enumerate(reader.group_rows()):
                    if count:
                        shares.append(Share(index, group, row, count))
                    row += count
        return shares

    def batches_of(self, columns: Sequence[str], share: Share) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one share, as `batches` would."""
        return self._file_batches(columns, share.file, share.group)

    def _reader(self, file: SourceFile) -> _Reader:
        with reading(file.path):
            opened: _Reader = _READERS[file.format](self._fs, file.path)
        return opened

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all files; see `Source.batches`."""
        for index in range(len(self._files)):
            yield from self._file_batches(columns, index, None)

    def _file_batches(
        self, columns: Sequence[str], index: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        file = self._files[index]
        reader = self._first if index == 0 else self._reader(file)
        own = [name for name in columns if name not in self._partitions]
        self._check(file, reader.schema, own)
        # Without a column of its own a file still has rows: any column tells how many.
        asked = own or reader.schema.names[:1]
        with reading(file.path):
            batches = (
                reader.batches(asked, group)
                if isinstance(reader, _ParquetReader)
                else reader.batches(asked)
            )
            for batch in batches:
                for piece in sliced(batch):
                    yield self._completed(piece, file, columns)

    def _check(self, file: SourceFile, schema: pa.Schema, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in schema.names:
                near = did_you_mean(name, schema.names)
                raise SourceError(f"source: {file.path} has no column {name!r}; {near}")

    def _completed(
        self, batch: pa.RecordBatch, file: SourceFile, columns: Sequence[str]
    ) -> pa.RecordBatch:
        arrays = [
            _constant(file.partitions.get(name), self._partitions[name].type, len(batch))
            if name in self._partitions
            else self._cast(batch.column(name), name, file)
            for name in columns
        ]
        schema = pa.schema([self.schema.field(name) for name in columns])
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _cast(self, array: Array, name: str, file: SourceFile) -> Array:
        wanted = self.schema.field(name).type
        if array.type.equals(wanted):
            return array
        try:
            return array.cast(wanted)
        except pa.ArrowException:
            raise SourceError(
                f"source: {name} is {array.type} in {file.path} and {wanted} in"
                f" {self._files[0].path}; give the column one type in all files"
            ) from None


class _MemorySource:
    """An object of this process; what cannot be read twice is read once only."""

    _begun: ClassVar["weakref.WeakSet[pa.RecordBatchReader]"] = weakref.WeakSet()

    def __init__(self, table: Any) -> None:
        self._table: Any = (
            pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        )
        self._stream: pa.RecordBatchReader | None = None
        schema = getattr(table, "schema", None)
        if not isinstance(schema, pa.Schema):
            self._stream = self._opened()
            schema = self._stream.schema
        self.schema: pa.Schema = schema

    def _opened(self) -> pa.RecordBatchReader:
        if hasattr(self._table, "__arrow_c_stream__"):
            with reading("the table in memory"):
                return pa.RecordBatchReader.from_stream(self._table)
        with reading("the table in memory"):
            return pa.Table.from_batches([pa.record_batch(self._table)]).to_reader()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if isinstance(self._table, pa.RecordBatchReader):
            if self._table in self._begun:
                raise SourceError(
                    "source: the record batch reader was read before and is used up;"
                    " give a table or a path to build again"
                )
            self._begun.add(self._table)
        stream, self._stream = self._stream or self._opened(), None
        with reading("the table in memory"):
            for batch in stream:
                yield from sliced(batch.select(list(columns)))


def sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch, without copies, so that none has more than BATCH_ROWS rows or is too wide."""
    widest = BATCH_BYTES * max(1, len(batch)) // max(1, batch.get_total_buffer_size())
    rows = max(64, min(BATCH_ROWS, widest))
    for start in range(0, len(batch), rows):
        yield batch.slice(start, rows)


def _partition_fields(files: Sequence[SourceFile]) -> dict[str, Field]:
    names = dict.fromkeys(name for file in files for name in file.partitions)
    fields: dict[str, Field] = {}
    for name in names:
        values = [v for v in (file.partitions.get(name) for file in files) if v is not None]
        whole = bool(values) and all(_is_whole_number(value) for value in values)
        fields[name] = pa.field(name, pa.int64() if whole else pa.string())
    return fields


def _is_whole_number(text: str) -> bool:
    """Take `7` but not `007`, which is a code, and no number beyond 64 bits."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or (digits != "0" and digits.startswith("0")):
        return False
    return text != "-0" and -_INT64 <= int(text) < _INT64


def _constant(value: str | None, kind: DataType, rows: int) -> Array:
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar(int(value) if pa.types.is_int64(kind) else value, kind), rows)
