"""A database that a connection names, opened by ADBC; its URL is in no message."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa

from batchrouter.errors import BatchrouterError, SinkError
from batchrouter.landing.sinks import database
from batchrouter.landing.sinks.database import STAGED, Dialect, Session, TableName
from batchrouter.landing.sinks.staged import StagedRows
from batchrouter.landing.sinks.table import Landing
from batchrouter.manifest.arrow import DataType
from batchrouter.manifest.connections import Connection, connection_named


class ConnectedTable:
    """The part of a `Format` that is the same for every ADBC database.

    Args:
        kind: The kind of sink, which is also the connection's driver.
        place: `<connection>#<table>` or `<connection>#<schema>.<table>`.

    Raises:
        ConfigError: The connection is unknown or of another database.
        SinkError: The place names no table.
    """

    errors: tuple[type[Exception], ...] = (OSError, pa.ArrowException)

    def __init__(self, kind: str, place: str) -> None:
        name, _, table = place.rpartition("#")
        self._connection: Connection = connection_named(name)
        if self._connection.driver != kind:
            raise SinkError(
                f"sink {kind}:{place}: the connection {name!r} is of {self._connection.driver}, not"
                f" of {kind}; name another connection"
            )
        self._table = TableName.read(table)
        self.location = f"{kind}:{place}"

    def masked(self, text: str) -> str:
        """Take the connection's secrets out of a text."""
        return self._connection.masked(text)

    @contextlib.contextmanager
    def session(self, *, read_only: bool = False) -> Generator[Session, None, None]:
        """Connect; see `Dialect.session`."""
        with (
            self._connection.refusing(self._refusal),
            contextlib.closing(
                self._connection.open(read_only=read_only, autocommit=True)
            ) as opened,
        ):
            session = AdbcSession(opened)
            self.prepare(session, read_only=read_only)
            yield session

    def prepare(self, session: "AdbcSession", *, read_only: bool) -> None:
        """Set what a session begins with; nothing, unless a database overrides it."""

    def _refusal(self, message: str) -> BatchrouterError:
        return SinkError(f"the table {self.location}: {message}. The table is as it was")

    def succeeded(self: Any, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Format.succeeded`."""
        dialect: Dialect = self
        return database.succeeded(dialect, self._table, columns)

    def commit(self: Any, landing: Landing, rows: StagedRows) -> None:
        """See `Format.commit`."""
        dialect: Dialect = self
        database.commit(dialect, self._table, landing, rows)


class AdbcSession:
    """See `Session`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(sql)
            if not cursor.description:
                return []
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def stage(self, rows: StagedRows) -> None:
        """Bulk load the rows into a temporary table."""
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.adbc_ingest(STAGED, rows.reader(), mode="create", temporary=True)

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Run a query, in flat memory."""
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(sql)
            with cursor.fetch_record_batch() as reader:
                yield from reader


def named(columns: Sequence[tuple[str, DataType]]) -> pa.Schema | None:
    """Give the columns of a table; no column means no table."""
    return pa.schema(list(columns)) if columns else None
