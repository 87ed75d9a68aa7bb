"""The other path: lines in any order are found by item id through an index on disk.

DuckDB joins ids to offsets, and spills; the lines themselves stay in the artifact, and are read
from their offsets in row order by the same parser. So the rows are the same as on the ordered
path, and memory does not grow with the part.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import LandingError, MissingExtraError
from batchrouter.landing.envelope import Envelope, UnreadableLineError, read_line
from batchrouter.landing.lines import read_lines
from batchrouter.landing.rejects import Rejects

_ROWS_A_CHUNK = 8_192
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "48MB",
    "threads": 1,
    "preserve_insertion_order": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

_ROWS_A_SHARE = 500_000
"""DuckDB holds a join's smaller side and spills only so much of it: 2 million ids burst 48 MB."""

# Ids are joined share by share, and whatever of them is kept is numbers alone.
_TABLES = """
    CREATE TABLE firsts (item_id VARCHAR, at_byte BIGINT, size_bytes BIGINT);
    CREATE TABLE rejected (at_byte BIGINT, size_bytes BIGINT, is_unknown BOOLEAN);
    CREATE TABLE matched (position BIGINT, at_byte BIGINT, size_bytes BIGINT);
"""
_FIRSTS = """
    INSERT INTO firsts
    SELECT item_id, min(at_byte), arg_min(size_bytes, at_byte)
    FROM lines WHERE hash(item_id) % $shares = $share GROUP BY item_id
"""
_REJECTED = """
    INSERT INTO rejected
    SELECT lines.at_byte, lines.size_bytes, rows.position IS NULL
    FROM (FROM lines WHERE hash(item_id) % $shares = $share) AS lines
    JOIN firsts USING (item_id)
    LEFT JOIN (FROM rows WHERE hash(item_id) % $shares = $share) AS rows USING (item_id)
    WHERE rows.position IS NULL OR rows.position < $rows_done OR lines.at_byte <> firsts.at_byte
"""
_MATCHED = """
    INSERT INTO matched
    SELECT rows.position, firsts.at_byte, firsts.size_bytes
    FROM (FROM rows WHERE hash(item_id) % $shares = $share) AS rows
    LEFT JOIN firsts USING (item_id)
    WHERE rows.position >= $rows_done
"""
_IN_ROW_ORDER = """
    SELECT at_byte, size_bytes FROM matched
    WHERE position >= ? AND position < ? ORDER BY position
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
                _fill(index, local_path, from_byte, item_ids, rejects)
                _match(index, rows_done)
                yield from _matched(index, local_path, rows_done, rejects)
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
) -> None:
    index.execute("CREATE TABLE rows (position BIGINT, item_id VARCHAR)")
    index.execute("CREATE TABLE lines (item_id VARCHAR, at_byte BIGINT, size_bytes BIGINT)")
    position = 0
    for ids in item_ids:
        positions = pa.array(range(position, position + len(ids)), pa.int64())
        insert(index, "rows", {"position": positions, "item_id": ids})
        position += len(ids)
    for ids, offsets, sizes in readable_lines(local_path, from_byte=from_byte, rejects=rejects):
        columns = {
            "item_id": pa.array(ids, pa.string()),
            "at_byte": pa.array(offsets, pa.int64()),
            "size_bytes": pa.array(sizes, pa.int64()),
        }
        insert(index, "lines", columns)


def _match(index: Any, rows_done: int) -> None:
    """Join lines and rows, a share of the ids at a time."""
    index.execute(_TABLES)
    shares = 1 + max(_count(index, "rows"), _count(index, "lines")) // _ROWS_A_SHARE
    for share in range(shares):
        which = {"share": share, "shares": shares}
        index.execute("DELETE FROM firsts")
        index.execute(_FIRSTS, which)
        index.execute(_REJECTED, {**which, "rows_done": rows_done})
        index.execute(_MATCHED, {**which, "rows_done": rows_done})


def _count(index: Any, table: str) -> int:
    # The names are our own.
    return int(index.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - one of two literals of ours


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
            if len(found) == _ROWS_A_CHUNK:
                yield _columns(found)
                found.clear()
    if found:
        yield _columns(found)


def _columns(
    found: list[tuple[str, int, int]],
) -> tuple[Sequence[str], Sequence[int], Sequence[int]]:
    ids, offsets, sizes = zip(*found, strict=True)
    return ids, offsets, sizes


def insert(index: Any, table: str, columns: Mapping[str, "pa.Array[Any]"]) -> None:
    """Append columns to a table of the index."""
    index.register("chunk", pa.table(dict(columns)))
    # The names are our own.
    index.execute(f"INSERT INTO {table} SELECT * FROM chunk")  # noqa: S608 - one of two literals of ours
    index.unregister("chunk")


def _matched(
    index: Any, local_path: Path, rows_done: int, rejects: Rejects
) -> Iterator[Envelope | None]:
    with _reading(local_path) as file:
        for at_byte, size_bytes, is_unknown in rows_of(
            index, "SELECT * FROM rejected ORDER BY at_byte", []
        ):
            raw = os.pread(file, size_bytes, at_byte)
            if is_unknown:
                rejects.add("unknown", at_byte, raw, "the item id is of no row of this part")
            else:
                rejects.add("duplicate", at_byte, raw, "the item already has a line")
        for start in range(rows_done, _count(index, "rows"), _ROWS_A_SHARE):
            of_share = rows_of(index, _IN_ROW_ORDER, [start, start + _ROWS_A_SHARE])
            for at_byte, size_bytes in of_share:
                yield None if at_byte is None else read_line(os.pread(file, size_bytes, at_byte))


@contextlib.contextmanager
def _reading(path: Path) -> Generator[int, None, None]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def rows_of(index: Any, query: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows, some held at a time."""
    answer = index.execute(query, values)
    while rows := answer.fetchmany(_ROWS_A_CHUNK):
        yield from rows
