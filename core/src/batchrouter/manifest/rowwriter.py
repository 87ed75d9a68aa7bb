"""The plain writer: one `json.dumps` a row, for what the fast writers cannot write.

It defines the bytes; the fast ones must give the same.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from batchrouter.errors import ManifestError
from batchrouter.job.templates import Template
from batchrouter.manifest.arrow import Array
from batchrouter.manifest.arrowwriter import ArrowWriter
from batchrouter.manifest.compiledwriter import CompiledWriter, may_be_compiled
from batchrouter.manifest.lines import ItemId, JsonColumn, Shape, Slot, pieces, to_json
from batchrouter.manifest.rows import PreparedRows
from batchrouter.manifest.slices import SLICE_BYTES, Slice

MAX_DEPTH = 64
"""How deep a line may nest (contract section 2)."""

_CAPS = ("max_output_tokens", "max_completion_tokens", "max_tokens")


class BadBodyError(ValueError):
    """A row's own JSON cannot be sent; `row` counts within the columns that were given."""

    def __init__(self, row: int, column: str, problem: str) -> None:
        super().__init__(problem)
        self.row = row
        self.column = column

    def in_source(self, rows: PreparedRows) -> ManifestError:
        """Name the row by its place in the source."""
        row = rows.first_row + int(rows.sent[self.row])
        return ManifestError(f"column {self.column!r}, row {row} (from 0): {self}")


class RowWriter:
    """Writes lines from a shape, and notes the largest output cap of the rows' own bodies."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.max_output_tokens: int | None = None

    def write(self, columns: Mapping[Slot, Array]) -> Iterator[Slice]:
        """Write a line for each row, slice by slice; the arguments are those of `ArrowWriter`.

        Raises:
            BadBodyError: A JSON column holds no object that can be sent.
        """
        values = {slot: each.to_pylist() for slot, each in columns.items()}
        lines, size, start = list[bytes](), 0, 0
        for row in range(len(next(iter(values.values())))):
            line = self._line({slot: each[row] for slot, each in values.items()}, row)
            lines.append(line)
            size += len(line)
            if size >= SLICE_BYTES:
                yield _slice(start, lines)
                lines, size, start = [], 0, row + 1
        if lines:
            yield _slice(start, lines)

    def _line(self, values: Mapping[Slot, str], row: int) -> bytes:
        return f"{to_json(self._filled(self._shape, values, row))}\n".encode()

    def _filled(self, shape: Shape, values: Mapping[Slot, str], row: int) -> Any:
        if isinstance(shape, Template):
            return shape.render(values.__getitem__)
        if isinstance(shape, ItemId):
            return values[shape]
        if isinstance(shape, JsonColumn):
            return self._body(shape, values[shape], row)
        if isinstance(shape, dict):
            return {name: self._filled(item, values, row) for name, item in shape.items()}
        if isinstance(shape, list):
            return [self._filled(item, values, row) for item in shape]
        return shape

    def _body(self, slot: JsonColumn, text: str, row: int) -> dict[str, Any]:
        try:
            body = parse_body(text)
        except ValueError as error:
            raise BadBodyError(row, slot.column, str(error)) from None
        caps = [body[name] for name in _CAPS if isinstance(body.get(name), int)]
        if caps:
            self.max_output_tokens = max(*caps, self.max_output_tokens or 0)
        return body


def line_writer(shape: Shape) -> CompiledWriter | ArrowWriter | RowWriter:
    """Choose a fast writer for every shape but that of whole bodies: C where it is installed."""
    line = pieces(shape)
    if any(isinstance(piece, JsonColumn) for piece in line):
        return RowWriter(shape)
    return CompiledWriter(line) if may_be_compiled() else ArrowWriter(line)


def parse_body(text: str) -> dict[str, Any]:
    """Read a row's own `input`.

    Raises:
        ValueError: Not a JSON object, or one that the contract refuses: a repeated key, NaN, a
            number that is no double, half a surrogate pair, a model, more than 64 levels.
    """
    try:
        body = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        to_json(body).encode()
    except RecursionError:
        raise ValueError(f"nests deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    if not isinstance(body, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - a wrong value of a text column
    if "model" in body:
        raise ValueError("names a model; name the acceptable ones in route.models")
    if _depth(body) > MAX_DEPTH - 2:
        raise ValueError(f"nests deeper than {MAX_DEPTH} levels with its line")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("repeats a key in an object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")


def _depth(value: Any) -> int:
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    below = max(map(_depth, children), default=0)
    return below + isinstance(value, dict | list)


def _slice(start: int, lines: list[bytes]) -> Slice:
    ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
    return Slice(start, memoryview(b"".join(lines)), ends)
