"""A table of SQLite, which has four types: whole numbers, numbers, text and bytes."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchrouter.errors import SinkError
from batchrouter.landing.sinks.adbc import AdbcSession, ConnectedTable, named
from batchrouter.landing.sinks.columns import lake_type
from batchrouter.landing.sinks.database import Session, TableName
from batchrouter.landing.sinks.table import Landing, sql_text
from batchrouter.manifest.arrow import DataType

_WAIT_MS = 60_000
_TYPES: dict[DataType, str] = {
    pa.int64(): "INTEGER",
    pa.float64(): "REAL",
    pa.string(): "TEXT",
    pa.binary(): "BLOB",
}
_READ = {name: kind for kind, name in _TYPES.items()} | {
    "INT": pa.int64(),
    "BIGINT": pa.int64(),
    "VARCHAR": pa.string(),
    "DOUBLE": pa.float64(),
}


class SQLiteFormat(ConnectedTable):
    """A table of a SQLite file; see `Format` and `database.Dialect`.

    Args:
        place: `<connection>#<table>`.
        storage_options: Not used.
    """

    def __init__(self, place: str, storage_options: Mapping[str, Any] | None = None) -> None:
        del storage_options
        super().__init__("sqlite", place)

    def stored(self, kind: DataType) -> DataType:
        """Give one of SQLite's own; times, decimals and nested values are text."""
        kind = lake_type(kind)
        if pt.is_integer(kind) or pt.is_boolean(kind):
            return pa.int64()
        if pt.is_floating(kind):
            return pa.float64()
        return kind if kind in _TYPES else pa.string()

    def type_name(self, kind: DataType) -> str:
        """See `Dialect.type_name`."""
        return _TYPES[kind]

    def columns(self, session: Session | None = None, table: TableName | None = None) -> Any:
        """See `Format.columns` and `Dialect.columns`."""
        if session is None:
            with self.session(read_only=True) as opened:
                return self.columns(opened, table)
        name = sql_text((table or self._table).table)
        found = session.run(f"select name, type from pragma_table_info({name})")  # noqa: S608 - quoted
        return named([(column, _type_of(kind)) for column, kind in found])

    def check_place(self) -> None:
        """See that the file can be written: a lock is taken, and let go."""
        if self._table.schema:
            raise SinkError(f"sink {self.location}: SQLite has no schemas; write <table>")
        with self.session() as session:
            session.run("begin immediate")
            session.run("rollback")

    def prepare(self, session: AdbcSession, *, read_only: bool) -> None:
        """Wait for other writers, and not for ever."""
        del read_only
        session.run(f"pragma busy_timeout = {_WAIT_MS}")

    def begin(self, session: Session, table: TableName) -> None:
        """Begin, alone among all writers of the file."""
        del table
        session.run("begin immediate")

    def comments(self, landing: Landing, table: TableName) -> Iterator[str]:
        """Give none: SQLite keeps no comments."""
        del landing, table
        yield from ()


def _type_of(name: str) -> DataType:
    return _READ.get(name.partition("(")[0].strip().upper()) or pa.opaque(
        pa.string(), name or "none", "SQLite"
    )
