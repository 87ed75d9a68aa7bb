"""JSON lines → Arrow, without guesses: text stays text, and the whole file decides the types.

Engines take a column's type from the first lines and turn text that looks like a time into one.
Here a first pass over the file finds each field's type, and a second one reads the rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import msgspec
import pyarrow as pa

from batchrouter.errors import SourceError
from batchrouter.manifest.arrow import DataType
from batchrouter.manifest.listing import reading

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20
_INT64 = 2**63
_decode = msgspec.json.Decoder().decode

Kind = Any
"""None (only NULLs yet), a scalar's name, `["list", kind]`, or a dict of a struct's fields."""

_SCALARS: dict[str, DataType] = {
    "true or false": pa.bool_(),
    "a whole number": pa.int64(),
    "a number": pa.float64(),
    "text": pa.string(),
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_NUMBERS = {"a whole number", "a number"}


class JsonLinesReader:
    """Reads one file of JSON objects, one a line; blank lines are passed over."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        fields: dict[str, Kind] = {}
        for line, row, _ in self._rows():
            for name, value in row.items():
                fields[name] = self._merged(fields.get(name), value, line, name)
        self.schema = pa.schema([(name, _type_of(kind)) for name, kind in fields.items()])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the columns, 4,096 rows or about 8 MiB at a time."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        rows, size = list[dict[str, Any]](), 0
        for _, row, length in self._rows():
            rows.append(row)
            size += length
            if len(rows) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield self._batch(rows, schema)
                rows, size = [], 0
        if rows:
            yield self._batch(rows, schema)

    def _batch(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
        with reading(self._path):
            arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        with reading(self._path), self._fs.open(self._path, "rb", compression="infer") as file:
            for line, text in enumerate(_lines(file), 1):
                stripped = text.strip()
                if not stripped:
                    continue
                try:
                    row = _decode(stripped)
                except (msgspec.DecodeError, RecursionError) as error:
                    raise self._problem(line, f"is not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise self._problem(line, "is no JSON object")
                yield line, row, len(stripped)

    def _merged(self, kind: Kind, value: Any, line: int, name: str) -> Kind:
        if value is None:
            return kind
        if isinstance(value, dict):
            fields = self._expected({}, kind, line, name)
            for inner, item in value.items():
                fields[inner] = self._merged(fields.get(inner), item, line, f"{name}.{inner}")
            return fields
        if isinstance(value, list):
            listed = self._expected(["list", None], kind, line, name)
            for item in value:
                listed[1] = self._merged(listed[1], item, line, f"{name}[]")
            return listed
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise self._problem(line, f"{name}: a number beyond 64 bits; write it as text")
        found = _NAMES[type(value)]
        if isinstance(kind, str) and {kind, found} == _NUMBERS:
            return "a number"
        return self._expected(found, kind, line, name)

    def _expected(self, found: Kind, kind: Kind, line: int, name: str) -> Kind:
        if kind is None or (isinstance(found, type(kind)) and not isinstance(kind, str)):
            return found if kind is None else kind
        if kind != found:
            told = f"{name}: {_told(found)} here and {_told(kind)} in the lines before"
            raise self._problem(line, f"{told}; give the field one type")
        return kind

    def _problem(self, line: int, text: str) -> SourceError:
        return SourceError(f"source: {self._path}, line {line}: {text}")


def _lines(file: Any) -> Iterator[bytes]:
    first = file.readline().removeprefix(b"\xef\xbb\xbf")
    if first:
        yield first
    yield from file


def _told(kind: Kind) -> str:
    return kind if isinstance(kind, str) else "an object" if isinstance(kind, dict) else "a list"


def _type_of(kind: Kind) -> DataType:
    if kind is None:
        return pa.null()
    if isinstance(kind, str):
        return _SCALARS[kind]
    if isinstance(kind, dict):
        return pa.struct([(name, _type_of(inner)) for name, inner in kind.items()])
    return pa.list_(_type_of(kind[1]))
