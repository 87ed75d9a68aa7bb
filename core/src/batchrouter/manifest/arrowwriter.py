"""The writer by Arrow: columns are escaped as whole buffers, and joined with the constants.

The cells of a column are joined raw, each with a byte behind it that no valid UTF-8 has (0xFF).
`bytes.replace` escapes them all at once, and the places of that byte are the cells' new ends. The
byte itself becomes the first one of the constant that follows, so that nothing is moved once more.
No object is made for a row. A property test holds the bytes against `json.dumps`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from batchrouter.manifest.arrow import Array, Scalar, pc, py_buffer
from batchrouter.manifest.lines import ItemId, Slot
from batchrouter.manifest.slices import SLICE_BYTES, Slice, as_binary, offsets_of, with_newline

_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r"}
_USUAL = [(b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t")]
"""The backslash comes first: the other escapes bring more of them."""
_RARE = [
    (bytes([byte]), _SHORT_ESCAPES.get(byte, b"\\u%04x" % byte))
    for byte in range(32)
    if byte not in b"\n\r\t"
]


@lru_cache(maxsize=64)
def _scalar(data: bytes) -> Scalar:
    # Not at import: pyarrow's first value loads pandas, which a process may want left out.
    return pa.scalar(data, pa.binary())


_END_BYTE = 0xFF
_END = bytes([_END_BYTE])


@dataclass(frozen=True, slots=True)
class _Cells:
    """Neighbouring slots, and the constant behind them, which is never empty."""

    slots: list[Slot]
    constant: bytes
    rest: Scalar
    """What of the constant does not come with the cells."""

    @classmethod
    def of(cls, slots: list[Slot], constant: bytes) -> "_Cells":
        """Cells and their constant; its first byte comes with those that are escaped."""
        is_safe = slots == [ItemId()]
        return cls(slots, constant, _scalar(constant if is_safe else constant[1:]))

    @property
    def is_safe(self) -> bool:
        """An item id needs no escape."""
        return self.slots == [ItemId()]


class ArrowWriter:
    """Writes lines for a fixed sequence of constants and slots."""

    def __init__(self, pieces: Sequence[str | Slot]) -> None:
        self._head, self._cells = _scalar(b""), list[_Cells]()
        waiting: list[Slot] = []
        for piece in with_newline(pieces):
            if not isinstance(piece, str):
                waiting.append(piece)
                continue
            constant = piece.encode()
            if waiting:
                self._cells.append(_Cells.of(waiting, constant))
            else:
                self._head = _scalar(constant)
            waiting = []
        self._slots = [piece for piece in pieces if not isinstance(piece, str)]
        constants = [piece for piece in with_newline(pieces) if isinstance(piece, str)]
        self._constant_bytes = sum(len(each.encode()) for each in constants)
        self._unsafe = [(c.slots, c.constant[0]) for c in self._cells if not c.is_safe]

    def write(self, columns: Mapping[Slot, Array]) -> Iterator[Slice]:
        """Write a line for each row, slice by slice.

        Args:
            columns: A string array for each slot, all of one length, valid UTF-8, without NULL.
        """
        if not len(columns[self._slots[0]]):
            return
        raw = {slot: as_binary(columns[slot]) for slot in self._slots}
        for start, end in self._cuts(raw):
            some = {slot: each.slice(start, end - start) for slot, each in raw.items()}
            yield self._slice(start, some)

    def _cuts(self, columns: Mapping[Slot, Array]) -> Iterator[tuple[int, int]]:
        """Cut rows so that a slice has about SLICE_BYTES, and at least one row."""
        row_bytes = np.full(len(columns[self._slots[0]]), self._constant_bytes, np.int64)
        for slot in self._slots:
            row_bytes += np.diff(offsets_of(columns[slot]))
        ends = np.cumsum(row_bytes)
        start, rows = 0, len(ends)
        while start < rows:
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
            yield start, end
            start = end

    def _slice(self, start: int, columns: Mapping[Slot, Array]) -> Slice:
        parts: list[Array | Scalar] = [self._head]
        escaped = iter(self._escaped_cells(columns))
        for cells in self._cells:
            parts += [columns[cells.slots[0]] if cells.is_safe else next(escaped), cells.rest]
        joined = pc.binary_join_element_wise(*parts, _scalar(b""))
        offsets = offsets_of(joined)
        lines = memoryview(joined.buffers()[2])[offsets[0] : offsets[-1]]
        return Slice(start, lines, offsets[1:].astype(np.int64) - offsets[0])

    def _escaped_cells(self, columns: Mapping[Slot, Array]) -> list[Array]:
        """Escape cells; behind each stands the first byte of the constant that follows."""
        if not self._unsafe:
            return []
        raw = bytearray().join(
            _data(
                pc.binary_join_element_wise(
                    *map(columns.__getitem__, slots), _scalar(_END), _scalar(b"")
                )
            )
            for slots, _ in self._unsafe
        )
        escaped = np.frombuffer(_escaped(raw), np.uint8)
        ends = np.flatnonzero(escaped == _END_BYTE).reshape(len(self._unsafe), -1)
        offsets = np.zeros(ends.size + 1, np.int32)
        np.add(ends.ravel(), 1, out=offsets[1:], casting="same_kind")
        data, rows = py_buffer(escaped), ends.shape[1]
        arrays: list[Array] = []
        for at, (_, next_byte) in enumerate(self._unsafe):
            escaped[ends[at]] = next_byte
            own = py_buffer(offsets[at * rows : (at + 1) * rows + 1])
            arrays.append(pa.Array.from_buffers(pa.binary(), rows, [None, own, data]))
        return arrays


def _escaped(text: bytearray) -> bytearray:
    for byte, escape in _USUAL:
        if byte in text:  # a search is cheap, and `replace` copies even where there is nothing
            text = text.replace(byte, escape)
    if np.frombuffer(text, np.uint8).min() < ord(" "):
        for byte, escape in _RARE:
            text = text.replace(byte, escape)
    return text


def _data(array: Array) -> memoryview:
    """Give the bytes of all values of a binary array."""
    bounds = offsets_of(array)
    return memoryview(array.buffers()[2])[bounds[0] : bounds[-1]]
