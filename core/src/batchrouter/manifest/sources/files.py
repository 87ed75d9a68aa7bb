"""Files of one format that make one table, on any file system."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchrouter.errors import SourceError
from batchrouter.job.problems import did_you_mean
from batchrouter.manifest.arrow import Array, DataType, Field
from batchrouter.manifest.listing import SourceFile, list_files, reading
from batchrouter.manifest.sources.readers import READERS, ParquetReader, Reader
from batchrouter.manifest.sources.table import sliced

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a table that can be read by itself: one row group of one file."""

    file: int
    group: int
    first_row: int
    row_count: int


class FileSource:
    """Files of one format that make one table."""

    version = None

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.storage_options = dict(storage_options or {})
        self._fs, self._files = list_files(url, storage_options)
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
                if not isinstance(reader, ParquetReader):
                    return []
                for group, count in enumerate(reader.group_rows()):
                    if count:
                        shares.append(Share(index, group, row, count))
                    row += count
        return shares

    def batches_of(self, columns: Sequence[str], share: Share) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one share, as `batches` would."""
        return self._file_batches(columns, share.file, share.group)

    def _reader(self, file: SourceFile) -> Reader:
        with reading(file.path):
            opened: Reader = READERS[file.format](self._fs, file.path)
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
                if isinstance(reader, ParquetReader)
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
