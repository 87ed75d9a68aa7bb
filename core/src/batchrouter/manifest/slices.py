"""Slices of whole lines, which is what every writer gives, and what the fast writers share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.manifest.arrow import Array
from batchrouter.manifest.lines import Slot

SLICE_BYTES = 768 * 1024
"""Bytes a slice: it must stay in the L2 cache; measured best between 0.5 and 1 MB."""

_NOTHING_BEFORE = np.zeros(1, np.int64)


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


def as_binary(text: Array) -> Array:
    """Take text as bytes with 32-bit offsets; nothing is copied if it has them."""
    if text.null_count:  # Arrow's join drops such rows without a word
        raise AssertionError("a NULL reached the writer")
    return text.cast(pa.binary())


def offsets_of(array: Array) -> npt.NDArray[np.int32]:
    """Give where each value of a binary array begins, and where the last one ends."""
    starts = np.frombuffer(array.buffers()[1], np.int32)
    return starts[array.offset : array.offset + len(array) + 1]


def with_newline(pieces: Sequence[str | Slot]) -> list[str | Slot]:
    """Let the last piece, which is a constant then, end in a newline."""
    last = pieces[-1]
    return [*pieces[:-1], f"{last}\n"] if isinstance(last, str) else [*pieces, "\n"]
