"""The writer in C, where `batchrouter-core[fast]` is installed: the same lines, in one pass.

It takes what `ArrowWriter` takes and gives the same bytes; a property test holds all three writers
against each other.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from batchrouter.manifest.arrow import Array
from batchrouter.manifest.lines import ItemId, Slot
from batchrouter.manifest.slices import SLICE_BYTES, Slice, as_binary, offsets_of, with_newline

try:
    import batchrouter_kernel
except (ImportError, OSError):  # not there, or a library that this machine does not load
    _kernel: Any = None
else:
    _kernel = batchrouter_kernel

COMPILED_VARIABLE = "BATCHROUTER_COMPILED"
_LONGEST_ESCAPE = 6
_OFFSET_BYTES = 4


def may_be_compiled() -> bool:
    """Tell whether the C kernel is installed, and ``BATCHROUTER_COMPILED`` is not ``0``."""
    return _kernel is not None and os.environ.get(COMPILED_VARIABLE) != "0"


class CompiledWriter:
    """Writes lines for a fixed sequence of constants and slots."""

    def __init__(self, pieces: Sequence[str | Slot]) -> None:
        self._slots: list[Slot] = []
        self._texts = [b""]  # held, since the constants only point to them
        for piece in with_newline(pieces):
            if isinstance(piece, str):
                self._texts[-1] += piece.encode()
            else:
                self._slots.append(piece)
                self._texts.append(b"")
        constants = [_kernel.Constant(text, len(text)) for text in self._texts]
        self._constants = (_kernel.Constant * len(constants))(*constants)

    def write(self, columns: Mapping[Slot, Array]) -> Iterator[Slice]:
        """Write a line for each row, slice by slice; the arguments are those of `ArrowWriter`."""
        cells = [as_binary(columns[slot]) for slot in self._slots]
        columns = self._columns(cells)
        start, rows, room = 0, len(cells[0]), SLICE_BYTES
        while start < rows:
            written = self._slice(columns, range(start, rows), room)
            if written is None:
                room = self._most_bytes(cells, start)
                continue
            yield written
            start, room = start + len(written.ends), SLICE_BYTES

    def _slice(self, columns: Any, rows: range, room: int) -> Slice | None:
        """Write those that fit into so many bytes, or None if not even the first one does."""
        lines = np.empty(room, np.uint8)
        ends = np.empty(len(rows), np.int64)
        written = _kernel.write_lines(
            columns,
            self._constants,
            start=rows.start,
            rows=rows.stop,
            out_address=lines.ctypes.data,
            out_bytes=room,
            ends_address=ends.ctypes.data,
        )
        if not written:
            return None
        return Slice(rows.start, lines.data[: ends[written - 1]], ends[:written])

    def _columns(self, cells: list[Array]) -> Any:
        columns = (_kernel.Column * len(cells))()
        for at, (slot, array) in enumerate(zip(self._slots, cells, strict=True)):
            _, offsets, data = array.buffers()
            columns[at].offsets = offsets.address + array.offset * _OFFSET_BYTES
            columns[at].data = data.address if data else None
            columns[at].is_safe = slot == ItemId()
        return columns

    def _most_bytes(self, cells: list[Array], row: int) -> int:
        """Give the room that a row may need, each byte of it escaped."""
        bounds = [offsets_of(each)[row : row + 2] for each in cells]
        cell_bytes = sum(int(end) - int(begin) for begin, end in bounds)
        return sum(map(len, self._texts)) + _LONGEST_ESCAPE * cell_bytes
