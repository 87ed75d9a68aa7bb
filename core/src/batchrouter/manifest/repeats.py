"""Requests that stand in more than one row: the first row is sent, the others take its answer.

Rendered lines wait on disk while 24 bytes of each are sorted: its hash of 128 bits, and its row.
Equal hashes are candidates; each is compared with the bytes of the first row's request before it
is left out. Memory is flat: hashes go into files by their first bits, what is found into files by
row, and no more than one file of either is held.
"""

import os
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.manifest.files import NumberedFiles
from batchrouter.manifest.lines import REQUEST_START
from batchrouter.manifest.slices import Slice
from batchrouter.manifest.snapshot import StagedRows
from batchrouter.manifest.staging import Staged
from batchrouter.manifest.storing import storing
from batchrouter.manifest.writing import BatchLines

_HASH_PARTS = 64
"""Of 100 million rows a file has 1.6 million: 38 MB to sort."""

_ROWS_A_FILE = 1 << 20

_Hashed = np.dtype([("high", np.uint64), ("low", np.uint64), ("row", np.int64)])
_Found = np.dtype([("row", np.int64), ("first", np.int64)])
_Line = np.dtype([("digest", "V16"), ("at_byte", np.int64), ("size_bytes", np.int64)])


def without_repeats(
    batches: Iterable[BatchLines], schema: pa.Schema
) -> Generator[BatchLines, None, None]:
    """Yield the same rows once all were read, with a line only for the first of equal requests.

    Takes room in the temporary folder (TMPDIR): all lines, and about 200 bytes a row.

    Raises:
        StorageError: The temporary folder takes no more.
        BatchrouterError: What `batches` raises.
    """
    with storing(tempfile.gettempdir()):
        folder = tempfile.TemporaryDirectory(prefix="batchrouter-dedupe-")
    with folder:
        staged = Staged(Path(folder.name), "table", schema)
        lines = _Lines(Path(folder.name) / "lines", staged.lines_path)
        repeats = Repeats(Path(folder.name))
        with staged.writer() as writer:
            for batch in batches:
                sizes = writer.write(batch)
                lines.add(batch.digests, sizes)
                sent = np.flatnonzero(sizes)
                repeats.add(batch.first_row + sent, batch.snapshot.request_digests[sent])
        firsts = repeats.found()
        with lines:
            for batch in staged.batches(keep=True):
                rows, first = firsts.between(batch.first_row, batch.row_count)
                yield _left_out(batch, rows - batch.first_row, first, lines)


def _left_out(
    batch: BatchLines,
    rows: npt.NDArray[np.int64],
    firsts: npt.NDArray[np.int64],
    lines: "_Lines",
) -> BatchLines:
    """Leave out the lines of rows that repeat the requests of `firsts`, as far as they do."""
    if not len(rows):
        return batch
    first_of = np.full(batch.row_count, -1, np.int64)
    first_of[rows] = firsts
    return BatchLines(
        batch.first_row,
        batch.row_count,
        batch.digests,
        _only_firsts(batch, first_of, lines),
        batch.snapshot,
    )


def _only_firsts(
    batch: BatchLines, first_of: npt.NDArray[np.int64], lines: "_Lines"
) -> Iterator[tuple[Slice, npt.NDArray[np.int64]]]:
    snapshot = batch.snapshot
    assert isinstance(snapshot, StagedRows)
    for piece, sent in batch.slices:
        is_sent = np.ones(len(sent), np.bool_)
        digests: list[bytes] = []
        starts, ends = piece.starts, piece.ends
        for at in np.flatnonzero(first_of[sent] >= 0).tolist():
            digest, request = lines.request(int(first_of[sent[at]]))
            if bytes(piece.lines[int(starts[at]) + REQUEST_START : int(ends[at])]) == request:
                is_sent[at] = False
                digests.append(digest)
        if digests:
            snapshot.repeat(sent[~is_sent], b"".join(digests))
        if is_sent.any():
            yield piece.only(is_sent), sent[is_sent]


class Repeats:
    """Finds equal hashes, and tells for each row that has one before it which the first is.

    Args:
        folder: A folder of its own on the local disk.
    """

    def __init__(self, folder: Path) -> None:
        self._by_hash = NumberedFiles(folder, "hash", _Hashed)
        self._by_row = NumberedFiles(folder, "rows", _Found)

    def add(self, rows: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> None:
        """Note the requests of rows, which ascend from call to call; 16 bytes a row.

        Raises:
            StorageError: The folder takes no more.
        """
        hashed = np.empty(len(rows), _Hashed)
        words = np.ascontiguousarray(digests).view(np.uint64)
        hashed["high"], hashed["low"], hashed["row"] = words[:, 0], words[:, 1], rows
        self._by_hash.add(hashed, (hashed["high"] >> np.uint64(58)).astype(np.int64))

    def found(self) -> "Firsts":
        """Sort what was noted.

        Raises:
            StorageError: The folder takes no more.
        """
        for part in range(_HASH_PARTS):
            found = _equal(self._by_hash.take(part))
            self._by_row.add(found, found["row"] // _ROWS_A_FILE)
        return Firsts(self._by_row)


def _equal(hashed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give each row whose hash stood before, and the first row that had it."""
    hashed = hashed[np.lexsort((hashed["low"], hashed["high"]))]  # stable: rows still ascend
    starts = np.ones(len(hashed), np.bool_)
    starts[1:] = np.diff(hashed["high"]) | np.diff(hashed["low"])
    first = hashed["row"][np.maximum.accumulate(np.where(starts, np.arange(len(hashed)), 0))]
    found = np.empty(int((~starts).sum()), _Found)
    found["row"], found["first"] = hashed["row"][~starts], first[~starts]
    return found


class Firsts:
    """Which row has the first of equal hashes; asked for rows in ascending order."""

    def __init__(self, by_row: "NumberedFiles") -> None:
        self._by_row = by_row
        self._part = -1
        self._held = np.empty(0, _Found)

    def between(
        self, first_row: int, count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give the rows of a range that have a first one before them, and that one for each."""
        found = [
            self._within(part, first_row, first_row + count)
            for part in range(
                first_row // _ROWS_A_FILE, (first_row + count - 1) // _ROWS_A_FILE + 1
            )
        ]
        both = np.concatenate(found)
        return both["row"].copy(), both["first"].copy()

    def _within(self, part: int, start: int, end: int) -> npt.NDArray[Any]:
        if part != self._part:
            held = self._by_row.take(part)
            self._part, self._held = part, held[np.argsort(held["row"])]
        low, high = np.searchsorted(self._held["row"], (start, end))
        return self._held[low:high]


class _Lines:
    """Where each row's staged line stands; a context manager while it is read."""

    def __init__(self, path: Path, lines_path: Path) -> None:
        self._path = path
        self._lines_path = lines_path
        self._end = 0
        self._files: list[int] = []

    def add(self, digests: bytes, sizes: npt.NDArray[np.int64]) -> None:
        """Note a batch's rows: 16 bytes of each key's hash, and the size of its line."""
        lines = np.empty(len(sizes), _Line)
        lines["digest"] = np.frombuffer(digests, "V16")
        lines["size_bytes"] = sizes
        lines["at_byte"] = self._end + np.cumsum(sizes) - sizes
        self._end += int(sizes.sum())
        with storing(str(self._path)), self._path.open("ab") as file:
            file.write(lines.data)

    def request(self, row: int) -> tuple[bytes, bytes]:
        """Read the hash of a row's key, and the bytes of its request."""
        index, lines = self._files
        with storing(str(self._path)):
            noted = os.pread(index, _Line.itemsize, row * _Line.itemsize)
            digest, at_byte, size_bytes = np.frombuffer(noted, _Line)[0].item()
            start = at_byte + REQUEST_START
            return digest, os.pread(lines, size_bytes - REQUEST_START, start)

    def __enter__(self) -> Self:
        with storing(str(self._path)):
            for path in (self._path, self._lines_path):
                path.touch()
                self._files.append(os.open(path, os.O_RDONLY))
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.pop())
