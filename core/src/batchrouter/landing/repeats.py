"""Rows that repeat another row's request: each takes the answer of the item that was sent for it.

That item may stand anywhere before, in an earlier part even, so its line is found through an index
on disk, over the artifacts of all parts, as in `disorder`. The first readable line of an item
counts here, too, and of an item that was sent again that of the newest round which has one. What
the answer cost stands in the row that was sent, and nowhere else: the sums over the table are what
was paid.
"""

import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from batchrouter.errors import LandingError, MissingExtraError
from batchrouter.landing.disorder import local_copy, readable_lines
from batchrouter.landing.envelope import Envelope, read_line
from batchrouter.landing.index import SETTINGS, in_row_order, insert, shares_of
from batchrouter.landing.report import PartToLand
from batchrouter.landing.snapshot import Snapshot

_TABLES = """
    CREATE TABLE all_repeating (position BIGINT, item_id VARCHAR);
    CREATE TABLE all_sent (item_id VARCHAR, part INTEGER);
    CREATE TABLE all_lines (item_id VARCHAR, part INTEGER, at_byte BIGINT, size_bytes BIGINT);
    CREATE TABLE answered (position BIGINT, part INTEGER, at_byte BIGINT, size_bytes BIGINT);
"""
_ANSWERED = """
    INSERT INTO answered
    WITH wanted AS (SELECT DISTINCT item_id FROM repeating),
    firsts AS (
        SELECT item_id, part, min(at_byte) AS at_byte, arg_min(size_bytes, at_byte) AS size_bytes
        FROM lines SEMI JOIN wanted USING (item_id) SEMI JOIN sent USING (item_id, part)
        GROUP BY item_id, part
    ),
    newest AS (
        SELECT item_id, max(part) AS part, arg_max(at_byte, part) AS at_byte,
            arg_max(size_bytes, part) AS size_bytes
        FROM firsts GROUP BY item_id
    ),
    owners AS (
        SELECT item_id, min(part) AS part FROM sent SEMI JOIN wanted USING (item_id)
        GROUP BY item_id
    )
    SELECT
        repeating.position, coalesce(newest.part, owners.part), newest.at_byte, newest.size_bytes
    FROM repeating LEFT JOIN owners USING (item_id) LEFT JOIN newest USING (item_id)
"""

Repeated = tuple[PartToLand, Envelope | None]
"""The part whose item was sent for the row, and that item's line if there is one."""


def repeated_answers(
    fs: fsspec.AbstractFileSystem, parts: Sequence[PartToLand], snapshots: Sequence[Snapshot]
) -> Generator[Repeated, None, None]:
    """Yield for each repeating row of all parts, in their order, what was answered.

    Args:
        fs: The run's filesystem.
        parts: All parts, those of later rounds after those of earlier ones.
        snapshots: Theirs.

    The index is in a temporary folder (TMPDIR), about 60 bytes a line, and is removed when the
    iterator ends or is closed. Artifacts that are on no local disk are copied there, too.

    Raises:
        LandingError: The index cannot be written; or a row takes the answer of an item that was
            never sent.
        MissingExtraError: DuckDB is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 - loads only where a landing needs it
    except ImportError:
        raise MissingExtraError.for_extra("tables", needed_for="landing with dedupe") from None
    with tempfile.TemporaryDirectory(prefix="batchrouter-landing-") as folder:
        spill = Path(folder)
        try:
            with duckdb.connect(str(spill / "index.duckdb"), config=SETTINGS) as index:
                index.execute("SET temp_directory = ?", [str(spill / "spill")])
                index.execute(_TABLES)
                repeating = _fill_rows(index, snapshots)
                copies = _fill_lines(index, fs, parts, spill)
                for _ in shares_of(index, ["repeating", "sent", "lines"]):
                    index.execute(_ANSWERED)
                yield from _matched(index, range(repeating), parts, copies)
        except duckdb.Error as error:
            raise LandingError(
                f"the answers of equal requests cannot be indexed: {error}"
            ) from error


def _fill_rows(index: Any, snapshots: Sequence[Snapshot]) -> int:
    """Note the ids of all rows; returns how many of them repeat."""
    position = 0
    for number, snapshot in enumerate(snapshots):
        for sent, repeating in snapshot.item_ids():
            positions = pa.array(range(position, position + len(repeating)), pa.int64())
            insert(index, "all_repeating", {"position": positions, "item_id": repeating})
            part = pa.repeat(pa.scalar(number, pa.int32()), len(sent))
            insert(index, "all_sent", {"item_id": sent, "part": part})
            position += len(repeating)
    return position


def _fill_lines(
    index: Any, fs: fsspec.AbstractFileSystem, parts: Sequence[PartToLand], spill: Path
) -> list[Path | None]:
    copies: list[Path | None] = []
    for number, part in enumerate(parts):
        if part.artifact_path is None:
            copies.append(None)
            continue
        path = local_copy(fs, part.artifact_path, spill / f"artifact-{number}.jsonl")
        for ids, offsets, sizes in readable_lines(path):
            columns = {
                "item_id": pa.array(ids, pa.string()),
                "part": pa.repeat(pa.scalar(number, pa.int32()), len(ids)),
                "at_byte": pa.array(offsets, pa.int64()),
                "size_bytes": pa.array(sizes, pa.int64()),
            }
            insert(index, "all_lines", columns)
        copies.append(path)
    return copies


def _matched(
    index: Any, positions: range, parts: Sequence[PartToLand], copies: Sequence[Path | None]
) -> Iterator[Repeated]:
    answered = in_row_order(index, "part, at_byte, size_bytes", "answered", positions=positions)
    with closing(_OneFile()) as file:
        for number, at_byte, size_bytes in answered:
            if number is None:
                raise LandingError(
                    "a row takes the answer of an item that was never sent; build the run again"
                )
            path = copies[number]
            if at_byte is None or path is None:
                yield parts[number], None
            else:
                yield parts[number], read_line(file.read(path, size_bytes, at_byte))


class _OneFile:
    """The file that was read last stays open: with one part it is the only one."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file = -1

    def read(self, path: Path, size_bytes: int, at_byte: int) -> bytes:
        if path != self._path:
            self.close()
            self._file = os.open(path, os.O_RDONLY)
            self._path = path
        return os.pread(self._file, size_bytes, at_byte)

    def close(self) -> None:
        if self._path is not None:
            os.close(self._file)
        self._path = None
