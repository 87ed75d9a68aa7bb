"""The fast writer: columns are escaped as whole buffers, and joined with the constants by Arrow.

The cells of a column are joined raw, each with a byte behind it that no valid UTF-8 has (0xFF).
`bytes.replace` escapes them all at once, and the places of that byte are the cells' new ends. The
byte itself becomes the first one of the constant that follows, so that nothing is moved once more.
No object is made for a row. A property test holds the bytes against `json.dumps`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.manifest.arrow import Array, Scalar, pc, py_buffer
from batchrouter.manifest.lines import ItemId, Slot

SLICE_BYTES = 768 * 1024
"""Bytes a slice: it must stay in the L2 cache; measured best between 0.5 and 1 MB."""

_END = 0xFF
_NOTHING_BEFORE = np.zeros(1, np.int64)
_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r"}
_CONTROLS = [
    (bytes([byte]), _SHORT_ESCAPES.get(byte, b"\\u%04x" % byte))
    for byte in (10, 13, 9, *(b for b in range(32) if b not in {9, 10, 13}))
]


def _scalar(data: bytes) -> Scalar:
    return pa.scalar(data, pa.binary())


@dataclass(frozen=True, slots=True)
class Slice:
    """Whole lines of some rows, each with its newline.

    Attributes:
        start: The first row, counted within the columns that were given.
        lines: The bytes.
        ends: For each row the offset just after its newline; ascending, int64.
    """

    start: int
    lines: memoryview
    ends: npt.NDArray[np.int64]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """For each row the offset of its first byte."""
        return np.concatenate((_NOTHING_BEFORE, self.ends[:-1]))

    def only(self, chosen: npt.NDArray[np.bool_]) -> "Slice":
        """Leave out the lines of the rows that are not chosen."""
        starts = self.starts[chosen]
        ends = self.ends[chosen]
        lines = b"".join(map(self.lines.__getitem__, map(slice, starts.tolist(), ends.tolist())))
        return Slice(self.start, memoryview(lines), np.cumsum(ends - starts))


@dataclass(frozen=True, slots=True)
class _Cells:
    """Neighbouring slots, and the constant behind them, which is never empty."""

    slots: list[Slot]
    constant: bytes

    @property
    def is_safe(self) -> bool:
        """An item id needs no escape."""
        return self.slots == [ItemId()]


class FastWriter:
    """Writes lines for a fixed sequence of constants and slots."""

    def __init__(self, pieces: Sequence[str | Slot]) -> None:
        self._head, self._cells = _scalar(b""), list[_Cells]()
        waiting: list[Slot] = []
        for piece in _with_newline(pieces):
            if not isinstance(piece, str):
                waiting.append(piece)
                continue
            constant = piece.encode()
            if waiting:
                self._cells.append(_Cells(waiting, constant))
            else:
                self._head = _scalar(constant)
            waiting = []
        self._slots = [piece for piece in pieces if not isinstance(piece, str)]
        constants = [piece for piece in _with_newline(pieces) if isinstance(piece, str)]
        self._constant_bytes = sum(len(each.encode()) for each in constants)
        self._nothing = _scalar(b"")
        self._end = _scalar(bytes([_END]))

    def write(self, columns: Mapping[Slot, Array]) -> Iterator[Slice]:
        """Write a line for each row, slice by slice.

        Args:
            columns: A string array for each slot, all of one length, valid UTF-8, without NULL.
        """
        if not len(columns[self._slots[0]]):
            return
        raw = {slot: columns[slot].cast(pa.binary()) for slot in self._slots}
        if any(each.null_count for each in raw.values()):  # Arrow drops such rows without a word
            raise AssertionError("a NULL reached the writer")
        for start, end in self._cuts(raw):
            some = {slot: each.slice(start, end - start) for slot, each in raw.items()}
            yield self._slice(start, some)

    def _cuts(self, columns: Mapping[Slot, Array]) -> Iterator[tuple[int, int]]:
        """Cut rows so that a slice has about SLICE_BYTES, and at least one row."""
        row_bytes = np.full(len(columns[self._slots[0]]), self._constant_bytes, np.int64)
        for slot in self._slots:
            row_bytes += np.diff(_offsets(columns[slot]))
        ends = np.cumsum(row_bytes)
        start, rows = 0, len(ends)
        while start < rows:
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
            yield start, end
            start = end

    def _slice(self, start: int, columns: Mapping[Slot, Array]) -> Slice:
        parts: list[Array | Scalar] = [self._head]
        for cells in self._cells:
            if cells.is_safe:
                parts += [columns[cells.slots[0]], _scalar(cells.constant)]
            else:
                parts += [self._with_next_byte(cells, columns), _scalar(cells.constant[1:])]
        joined = pc.binary_join_element_wise(*parts, self._nothing)
        offsets = _offsets(joined)
        lines = memoryview(joined.buffers()[2])[offsets[0] : offsets[-1]]
        return Slice(start, lines, offsets[1:].astype(np.int64) - offsets[0])

    def _with_next_byte(self, cells: _Cells, columns: Mapping[Slot, Array]) -> Array:
        """Escape cells; behind each stands the first byte of the constant that follows."""
        texts = [columns[slot] for slot in cells.slots]
        joined = pc.binary_join_element_wise(*texts, self._end, self._nothing)
        bounds = _offsets(joined)
        raw = memoryview(joined.buffers()[2])[bounds[0] : bounds[-1]].tobytes()
        escaped = np.frombuffer(_escaped(raw), np.uint8).copy()
        last = np.flatnonzero(escaped == _END)
        escaped[last] = cells.constant[0]
        offsets = np.zeros(len(last) + 1, np.int32)
        offsets[1:] = last + 1
        buffers = [None, py_buffer(offsets), py_buffer(escaped)]
        return pa.Array.from_buffers(pa.binary(), len(last), buffers)


def _escaped(text: bytes) -> bytes:
    text = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    controls = int(np.count_nonzero(np.frombuffer(text, np.uint8) < ord(" ")))
    for control, escape in _CONTROLS:
        if not controls:
            break
        size = len(text)
        text = text.replace(control, escape)
        controls -= (len(text) - size) // (len(escape) - 1)
    return text


def _offsets(array: Array) -> npt.NDArray[np.int32]:
    """Give where each value of a binary array begins, and where the last one ends."""
    starts = np.frombuffer(array.buffers()[1], np.int32)
    return starts[array.offset : array.offset + len(array) + 1]


def _with_newline(pieces: Sequence[str | Slot]) -> list[str | Slot]:
    last = pieces[-1]
    return [*pieces[:-1], f"{last}\n"] if isinstance(last, str) else [*pieces, "\n"]
