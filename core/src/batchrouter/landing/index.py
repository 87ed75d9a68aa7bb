"""An index on disk: which line answers which row, found by item id in flat memory.

DuckDB spills, but not enough of its joins for the limit to hold over many ids: a statement of
several joins over 166,000 of them burst 48 MB, one over 100,000 did not. So ids are joined share
by share of their hash, whatever is kept of a join is numbers, and these are read in row order,
some rows at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "48MB",
    "threads": 1,
    "preserve_insertion_order": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

_READING_LIMIT = "16MB"
"""While rows are handed out the sink holds a row group as well, and joins are done."""

_ROWS_A_SHARE = 100_000
_ROWS_A_CHUNK = 8_192

# The names of tables in the statements are literals of the modules that call.


def insert(index: Any, table: str, columns: Mapping[str, "pa.Array[Any]"]) -> None:
    """Append columns to a table of the index."""
    index.register("chunk", pa.table(dict(columns)))
    index.execute(f"INSERT INTO {table} SELECT * FROM chunk")  # noqa: S608 - a literal of ours
    index.unregister("chunk")


def shares_of(index: Any, tables: Sequence[str]) -> Iterator[None]:
    """Go through the item ids share by share.

    Args:
        index: The index.
        tables: Names; of each there is a table `all_<name>` with an `item_id`, and `<name>` is
            made a view of the rows of the share.
    """
    shares = 1 + max(_count(index, f"all_{table}") for table in tables) // _ROWS_A_SHARE
    for share in range(shares):
        for table in tables:
            index.execute(
                f"CREATE OR REPLACE VIEW {table} AS"  # noqa: S608 - a literal of ours
                f" SELECT * FROM all_{table} WHERE hash(item_id) % {shares} = {share}"
            )
        yield


def in_row_order(
    index: Any, columns: str, table: str, *, positions: range
) -> Iterator[tuple[Any, ...]]:
    """Yield columns of a table by its `position`; nothing can be joined afterwards."""
    index.execute(f"SET memory_limit = '{_READING_LIMIT}'")
    query = f"SELECT {columns} FROM {table} WHERE position >= ? AND position < ? ORDER BY position"  # noqa: S608 - literals of ours
    for start in positions[::_ROWS_A_SHARE]:
        yield from rows_of(index, query, [start, min(start + _ROWS_A_SHARE, positions.stop)])


def rows_of(index: Any, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows, some held at a time."""
    answer = index.execute(query, values)
    while rows := answer.fetchmany(_ROWS_A_CHUNK):
        yield from rows


def _count(index: Any, table: str) -> int:
    return int(index.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a literal of ours
