"""Rendered batches → parts: each line, and its snapshot row beside it, cut where a part ends."""

import numpy as np
import numpy.typing as npt

from batchrouter.errors import ManifestError
from batchrouter.manifest.parts import PartFiles
from batchrouter.manifest.slices import Slice
from batchrouter.manifest.writing import BatchLines


def write_batch(batch: BatchLines, files: PartFiles) -> None:
    """Write a batch's lines, and its snapshot rows beside them, split where a part ends.

    Raises:
        ManifestError: A row cannot become a request, or its line is longer than a part.
        StorageError: The files cannot be written.
    """
    for piece, sent in batch.slices:
        _write_slice(piece, sent, batch, files)
    files.open_part.write_rows(batch.snapshot.until(batch.row_count))


def _write_slice(
    piece: Slice, sent: npt.NDArray[np.int64], batch: BatchLines, files: PartFiles
) -> None:
    at, start_byte = 0, 0
    while at < len(piece.ends):
        part = files.open_part
        count = files.fitting(piece.ends[at:], start_byte)
        if count:
            end_byte = int(piece.ends[at + count - 1])
            batch.snapshot.number(sent[at : at + count], part.item_count)
            part.write_lines(piece.lines[start_byte:end_byte], count)
            at, start_byte = at + count, end_byte
        elif part.item_count:
            part.write_rows(batch.snapshot.until(int(sent[at])))
            files.next()
        else:
            size = int(piece.ends[at]) - start_byte
            row = batch.first_row + int(sent[at])
            raise ManifestError(
                f"row {row} (from 0) makes a line of {size} bytes, which no part can hold:"
                f" raise parts.max_bytes"
            )
