"""Rendered batches that wait on disk: their lines one after the other, their rows beside them.

Two files: the lines, and an Arrow stream of the snapshot's rows with what only the build needs of
them: the size of each line, and the hashes of key and request.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.manifest.arrow import py_buffer
from batchrouter.manifest.slices import SLICE_BYTES, Slice
from batchrouter.manifest.snapshot import StagedRows
from batchrouter.manifest.storing import storing
from batchrouter.manifest.writing import BatchLines

_DIGEST_BYTES = 16
_ADDED = (
    ("_size", pa.int64()),
    ("_digest", pa.binary(_DIGEST_BYTES)),
    ("_request_digest", pa.binary(_DIGEST_BYTES)),
    ("_is_unchanged", pa.bool_()),
)


class Staged:
    """Batches of one build in a folder, under one name.

    Args:
        folder: An existing folder of the local disk.
        name: The files' name.
        schema: The snapshot's columns.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder = folder
        self.lines_path = folder / f"{name}.jsonl"
        self._rows_path = folder / f"{name}.arrows"
        self._schema = schema

    def writer(self) -> "StagedWriter":
        """Begin the two files; a context manager."""
        added = [pa.field(name, kind) for name, kind in _ADDED]
        schema = pa.schema([*self._schema, *added])
        return StagedWriter(self.lines_path, self._rows_path, schema)

    def batches(self, *, keep: bool = False) -> Iterator[BatchLines]:
        """Yield what was written; the files are removed at the start unless they are kept.

        Raises:
            StorageError: The folder cannot be read.
        """
        with (
            storing(str(self._folder)),
            self.lines_path.open("rb", buffering=0) as lines,
            pa.OSFile(str(self._rows_path), "rb") as file,
            pa.ipc.open_stream(file) as stream,
        ):
            if not keep:
                self.lines_path.unlink()
                self._rows_path.unlink()
            for batch in stream:
                yield self._lines_of(batch, lines)

    def _lines_of(self, batch: pa.RecordBatch, lines: Any) -> BatchLines:
        rows = batch.select(self._schema.names)
        digests = _raw(batch.column("_digest"))
        snapshot = StagedRows(
            self._schema,
            rows,
            digests=digests,
            request_digests=_raw(batch.column("_request_digest")),
            is_unchanged=batch.column("_is_unchanged").to_numpy(zero_copy_only=False),
        )
        sizes = batch.column("_size").to_numpy()
        first_row = rows.column("_row")[0].as_py()
        return BatchLines(first_row, len(rows), digests, _slices(lines, sizes), snapshot)


class StagedWriter:
    """Writes batches; `Staged.writer` makes it."""

    def __init__(self, lines_path: Path, rows_path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._stack = ExitStack()
        with storing(str(lines_path.parent)):
            self._lines = self._stack.enter_context(lines_path.open("wb"))
            file = self._stack.enter_context(pa.OSFile(str(rows_path), "wb"))
            self._rows = self._stack.enter_context(pa.ipc.new_stream(file, schema))

    def write(self, batch: BatchLines) -> npt.NDArray[np.int64]:
        """Write a batch, and give the size of each row's line, 0 for a row without one.

        Raises:
            StorageError: The folder takes no more.
            ManifestError: A row cannot become a request.
        """
        sizes = np.zeros(batch.row_count, np.int64)
        for piece, sent in batch.slices:
            with storing(self._lines.name):
                self._lines.write(piece.lines)
            sizes[sent] = np.diff(piece.ends, prepend=0)
            batch.snapshot.number(sent, 0)
        rows = batch.snapshot.between(0, batch.row_count)
        added = [
            pa.array(sizes),
            _binary(batch.digests, batch.row_count),
            _binary(batch.snapshot.request_digests, batch.row_count),
            pa.array(batch.snapshot.is_unchanged),
        ]
        whole = pa.RecordBatch.from_arrays([*rows.columns, *added], schema=self._schema)
        with storing(self._lines.name):
            self._rows.write_batch(whole)
        return sizes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storing(self._lines.name):
            self._stack.close()


def _binary(digests: bytes | npt.NDArray[np.uint8], count: int) -> "pa.Array[Any]":
    return pa.Array.from_buffers(pa.binary(_DIGEST_BYTES), count, [None, py_buffer(digests)])


def _raw(digests: Any) -> bytes:
    start = digests.offset * _DIGEST_BYTES
    end = start + len(digests) * _DIGEST_BYTES
    return memoryview(digests.buffers()[1])[start:end].tobytes()


def _slices(
    lines: Any, sizes: npt.NDArray[np.int64]
) -> Iterator[tuple[Slice, npt.NDArray[np.int64]]]:
    sent = np.flatnonzero(sizes)
    ends = np.cumsum(sizes[sent])
    start = 0
    while start < len(sent):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
        data = lines.read(int(ends[end - 1]) - before)
        yield Slice(start, memoryview(data), ends[start:end] - before), sent[start:end]
        start = end
