"""The other path: lines in any order are found by item id through an index on disk.

The index joins ids to offsets; the lines themselves stay in the artifact, and are read
from their offsets in row order by the same parser. So the rows are the same as on the ordered
path, and memory does not grow with the part.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import LandingError, MissingExtraError
from batchrouter.landing.envelope import Envelope, UnreadableLineError, read_line
from batchrouter.landing.index import SETTINGS, in_row_order, insert, rows_of, shares_of
from batchrouter.landing.lines import read_lines
from batchrouter.landing.rejects import Rejects

_LINES_A_CHUNK = 8_192

_TABLES = """
    CREATE TABLE all_rows (position BIGINT, item_id VARCHAR);
    CREATE TABLE all_lines (item_id VARCHAR, at_byte BIGINT, size_bytes BIGINT);
    CREATE TABLE rejected (at_byte BIGINT, size_bytes BIGINT, is_unknown BOOLEAN);
    CREATE TABLE matched (position BIGINT, at_byte BIGINT, size_bytes BIGINT);
"""
_FIRSTS = """
    CREATE OR REPLACE TABLE firsts AS
    SELECT item_id, min(at_byte) AS at_byte, arg_min(size_bytes, at_byte) AS size_bytes
    FROM lines GROUP BY item_id
"""
_REJECTED = """
    INSERT INTO rejected
    SELECT lines.at_byte, lines.size_bytes, rows.position IS NULL
    FROM lines JOIN firsts USING (item_id) LEFT JOIN rows USING (item_id)
    WHERE rows.position IS NULL OR rows.position < ? OR lines.at_byte <> firsts.at_byte
"""
_MATCHED = """
    INSERT INTO matched
    SELECT rows.position, firsts.at_byte, firsts.size_bytes
    FROM rows LEFT JOIN firsts USING (item_id)
    WHERE rows.position >= ?
"""


def find_by_index(
    fs: fsspec.AbstractFileSystem,
    artifact_path: str,
    *,
    from_byte: int,
    item_ids: Iterable["pa.Array[Any]"],
    rows_done: int,
    rejects: Rejects,
) -> Generator[Envelope | None, None, None]:
    """Yield for each row from `rows_done` on its first readable line, None without one.

    Lines before `from_byte` belong to the rows that are done. Of the lines from there on, those
    that cannot be read, whose id is of no row, or whose row already has a line are rejected.
    The index is in a temporary folder (TMPDIR), about 50 bytes a line, and is removed when the
    iterator ends or is closed.

    Raises:
        LandingError: The index cannot be written, for want of room for instance.
        MissingExtraError: DuckDB is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 - loads only where an artifact is out of order
    except ImportError:
        raise MissingExtraError.for_extra(
            "tables", needed_for="landing an artifact that is out of order"
        ) from None
    with tempfile.TemporaryDirectory(prefix="batchrouter-landing-") as folder:
        spill = Path(folder)
        try:
            local_path = local_copy(fs, artifact_path, spill / "artifact.jsonl")
            with duckdb.connect(str(spill / "index.duckdb"), config=SETTINGS) as index:
                index.execute("SET temp_directory = ?", [str(spill / "spill")])
                index.execute(_TABLES)
                rows = _fill(index, local_path, from_byte, item_ids, rejects)
                _match(index, rows_done)
                yield from _matched(index, local_path, range(rows_done, rows), rejects)
        except duckdb.Error as error:
            raise LandingError(f"an artifact out of order cannot be indexed: {error}") from error


def local_copy(fs: fsspec.AbstractFileSystem, artifact_path: str, copy: Path) -> Path:
    """Give the artifact's own path if it is on a local disk; else copy it."""
    if isinstance(fs, LocalFileSystem):
        return Path(artifact_path)
    with cast("Any", fs.open(artifact_path, "rb")) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return copy


def _fill(
    index: Any,
    local_path: Path,
    from_byte: int,
    item_ids: Iterable["pa.Array[Any]"],
    rejects: Rejects,
) -> int:
    """Note the ids of all rows and lines; returns how many rows there are."""
    position = 0
    for ids in item_ids:
        positions = pa.array(range(position, position + len(ids)), pa.int64())
        insert(index, "all_rows", {"position": positions, "item_id": ids})
        position += len(ids)
    for ids, offsets, sizes in readable_lines(local_path, from_byte=from_byte, rejects=rejects):
        columns = {
            "item_id": pa.array(ids, pa.string()),
            "at_byte": pa.array(offsets, pa.int64()),
            "size_bytes": pa.array(sizes, pa.int64()),
        }
        insert(index, "all_lines", columns)
    return position


def _match(index: Any, rows_done: int) -> None:
    """Join lines and rows."""
    for _ in shares_of(index, ["rows", "lines"]):
        index.execute(_FIRSTS)
        index.execute(_REJECTED, [rows_done])
        index.execute(_MATCHED, [rows_done])


def readable_lines(
    path: Path, *, from_byte: int = 0, rejects: Rejects | None = None
) -> Iterator[tuple[Sequence[str], Sequence[int], Sequence[int]]]:
    """Yield ids, offsets and sizes of the lines that can be read, some at a time."""
    found: list[tuple[str, int, int]] = []
    with path.open("rb") as file:
        for at_byte, raw in read_lines(file, from_byte=from_byte):
            try:
                item_id = cast("str", read_line(raw).customer_item_id)
            except UnreadableLineError as error:
                if rejects is not None:
                    rejects.add("unreadable", at_byte, raw, str(error))
                continue
            found.append((item_id, at_byte, len(raw)))
            if len(found) == _LINES_A_CHUNK:
                yield _columns(found)
                found.clear()
    if found:
        yield _columns(found)


def _columns(
    found: list[tuple[str, int, int]],
) -> tuple[Sequence[str], Sequence[int], Sequence[int]]:
    ids, offsets, sizes = zip(*found, strict=True)
    return ids, offsets, sizes


def _matched(
    index: Any, local_path: Path, positions: range, rejects: Rejects
) -> Iterator[Envelope | None]:
    with _reading(local_path) as file:
        rejected = rows_of(index, "SELECT * FROM rejected ORDER BY at_byte")
        for at_byte, size_bytes, is_unknown in rejected:
            raw = os.pread(file, size_bytes, at_byte)
            if is_unknown:
                rejects.add("unknown", at_byte, raw, "the item id is of no row of this part")
            else:
                rejects.add("duplicate", at_byte, raw, "the item already has a line")
        matched = in_row_order(index, "at_byte, size_bytes", "matched", positions=positions)
        for at_byte, size_bytes in matched:
            yield None if at_byte is None else read_line(os.pread(file, size_bytes, at_byte))


@contextlib.contextmanager
def _reading(path: Path) -> Generator[int, None, None]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)
