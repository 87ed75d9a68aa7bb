"""The fast writer: a slice of rows is joined by Arrow, and escaped as one buffer.

Columns are joined raw, with one marker byte for each constant between them; the markers
(0xC0, 0xC1, 0xF5 to 0xFF) occur in no valid UTF-8. `bytes.replace` then escapes the whole buffer
and puts the constants in. On 1.6 kB lines this takes 1.85 times less CPU than an orjson loop, and
writes the same bytes as `json.dumps` (a property test holds the two writers together).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.manifest.arrow import Array, pc
from batchrouter.manifest.lines import Slot

SLICE_BYTES = 768 * 1024
"""Bytes a slice: it must stay in the L2 cache; measured best between 0.5 and 1 MB."""

_MARKERS = [bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]
_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r"}
_CONTROLS = [
    (bytes([byte]), _SHORT_ESCAPES.get(byte, b"\\u%04x" % byte))
    for byte in (10, 13, 9, *(b for b in range(32) if b not in {9, 10, 13}))
]
_NOTHING = pa.scalar(b"", pa.binary())


@dataclass(frozen=True, slots=True)
class Slice:
    """Whole lines of some rows, each with its newline.

    Attributes:
        start: The first row, counted within the columns that were given.
        lines: The bytes.
        ends: For each row the offset just after its newline; ascending, int64.
    """

    start: int
    lines: bytes
    ends: npt.NDArray[np.int64]


class FastWriter:
    """Writes lines for a fixed sequence of constants and slots."""

    def __init__(self, pieces: Sequence[str | Slot]) -> None:
        constants = [each.encode() for each in _with_newline(pieces) if isinstance(each, str)]
        markers = dict(zip(dict.fromkeys(constants), _MARKERS, strict=False))
        self._constants = [(marker, constant) for constant, marker in markers.items()]
        self._constant_bytes = sum(map(len, constants))
        self._slots = [piece for piece in pieces if not isinstance(piece, str)]
        self._joined: list[Slot | bytes] = [
            markers[each.encode()] if isinstance(each, str) else each
            for each in _with_newline(pieces)
        ]

    @staticmethod
    def can_write(pieces: Sequence[str | Slot]) -> bool:
        """Tell whether there are marker bytes enough for the constants."""
        return len({piece for piece in pieces if isinstance(piece, str)}) < len(_MARKERS)

    def write(self, columns: Mapping[Slot, Array]) -> Iterator[Slice]:
        """Write a line for each row, slice by slice.

        Args:
            columns: A string array for each slot, all of one length, valid UTF-8, without NULL.
        """
        if not len(columns[self._slots[0]]):
            return
        for start, end in self._cuts(columns):
            lines = self._lines({
                slot: each.slice(start, end - start) for slot, each in columns.items()
            })
            newlines = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
            yield Slice(start, lines, newlines + 1)

    def _cuts(self, columns: Mapping[Slot, Array]) -> Iterator[tuple[int, int]]:
        """Cut rows so that a slice has about SLICE_BYTES, and at least one row."""
        row_bytes = np.full(len(columns[self._slots[0]]), self._constant_bytes, np.int64)
        for slot in self._slots:
            row_bytes += pc.binary_length(columns[slot]).to_numpy(zero_copy_only=False)
        ends = np.cumsum(row_bytes)
        start, rows = 0, len(ends)
        while start < rows:
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
            yield start, end
            start = end

    def _lines(self, columns: Mapping[Slot, Array]) -> bytes:
        parts = [
            pa.scalar(part, pa.binary())
            if isinstance(part, bytes)
            else columns[part].cast(pa.binary())
            for part in self._joined
        ]
        joined = pc.binary_join_element_wise(*parts, _NOTHING)
        if joined.null_count:  # Arrow drops such rows without a word
            raise AssertionError("a NULL reached the writer")
        _, offsets, data = joined.buffers()
        bounds = np.frombuffer(offsets, np.int32)[[joined.offset, joined.offset + len(joined)]]
        text = memoryview(data)[bounds[0] : bounds[1]].tobytes()
        text = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        controls = int(np.count_nonzero(np.frombuffer(text, np.uint8) < ord(" ")))
        for control, escape in _CONTROLS:
            if not controls:
                break
            size = len(text)
            text = text.replace(control, escape)
            controls -= (len(text) - size) // (len(escape) - 1)
        for marker, constant in self._constants:
            text = text.replace(marker, constant)
        return text


def _with_newline(pieces: Sequence[str | Slot]) -> list[str | Slot]:
    last = pieces[-1]
    return [*pieces[:-1], f"{last}\n"] if isinstance(last, str) else [*pieces, "\n"]
