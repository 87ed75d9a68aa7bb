"""A table in a DuckDB file; one process at a time may have the file open for writing."""

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from batchrouter.errors import MissingExtraError, SinkError
from batchrouter.landing.sinks import database
from batchrouter.landing.sinks.columns import lake_type
from batchrouter.landing.sinks.database import STAGED, Session, TableName
from batchrouter.landing.sinks.staged import StagedRows
from batchrouter.landing.sinks.table import Landing, sql_name, sql_text
from batchrouter.manifest.arrow import DataType

_MEMORY = "256MB"
_WAIT_FOR_FILE_S = 60.0
_ARROW_SCAN = "python_arrow_scan"
_LOOK_S = 0.2
_READ_ROWS = 8192


class DuckDBFormat:
    """A table of a DuckDB file; see `Format`.

    Args:
        place: `<file>#<table>` or `<file>#<schema>.<table>`.
        storage_options: Not used; the file is local.

    Raises:
        MissingExtraError: `duckdb` is not installed.
        SinkError: The place names no table.
    """

    def __init__(self, place: str, storage_options: Mapping[str, Any] | None = None) -> None:
        del storage_options
        self._library = _library()
        file, _, table = place.rpartition("#")
        self._file = Path(file)
        self._table = TableName.read(table)
        self.location = f"duckdb:{place}"
        self.errors = (OSError, pa.ArrowException, self._library.Error)

    def stored(self, kind: DataType) -> DataType:
        """See `Format.stored`; what Delta has, DuckDB has, too."""
        return lake_type(kind)

    def masked(self, text: str) -> str:
        """Give the text: there is no secret."""
        return text

    def check_place(self) -> None:
        """See that the file can be made or written."""
        with _explained(self.location):
            if not self._file.exists() and not self._file.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {self._file.parent}")
            with self._file.open("ab"):
                pass
            if self._file.stat().st_size == 0:
                self._file.unlink()  # ours: DuckDB makes its own

    def columns(self, session: Session | None = None, table: TableName | None = None) -> Any:
        """See `Format.columns` and `Dialect.columns`."""
        table = table or self._table
        if session is None:
            if not self._file.exists():
                return None
            with self.session(read_only=True) as opened:
                return self.columns(opened, table)
        schema = sql_text(table.schema) if table.schema else "current_schema()"
        if not session.run(
            "select 1 from information_schema.tables where table_catalog = current_database()"  # noqa: S608 - quoted
            f" and table_schema = {schema} and table_name = {sql_text(table.table)}"
        ):
            return None
        opened = cast("_Session", session)
        given = opened.schema_of(f"select * from {table.quoted} limit 0")  # noqa: S608 - quoted
        return pa.schema([(each.name, lake_type(each.type)) for each in given])

    def type_name(self, kind: DataType) -> str:
        """Ask DuckDB itself."""
        with self._library.connect(":memory:") as scratch:
            empty = pa.schema([("c", kind)]).empty_table()
            scratch.register("empty", empty)
            return str(scratch.sql("select * from empty").types[0])

    def begin(self, session: Session, table: TableName) -> None:
        """Begin; the file is this process' alone, and DuckDB finds conflicts of its threads."""
        if table.schema:
            session.run(f"create schema if not exists {TableName('', table.schema).quoted}")
        session.run("begin")

    def comments(self, landing: Landing, table: TableName) -> Iterator[str]:
        """See `Dialect.comments`."""
        yield f"comment on table {table.quoted} is {sql_text(landing.comment)}"
        for name, about in landing.column_comments.items():
            yield f"comment on column {table.quoted}.{sql_name(name)} is {sql_text(about)}"

    def commit(self, landing: Landing, rows: StagedRows) -> None:
        """Commit; again where another thread of this process was first."""
        give_up_at = time.monotonic() + _WAIT_FOR_FILE_S
        while True:
            try:
                database.commit(self, self._table, landing, rows)
            except self._library.Error as error:
                if not self._passes(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(_LOOK_S)
            else:
                return

    def _passes(self, error: Exception) -> bool:
        """Tell whether another thread was in the way, so that nothing was committed."""
        if isinstance(
            error, self._library.TransactionException | self._library.ConstraintException
        ):
            return True
        # While a second thread opens the same file, its own scan of Arrow is unknown for a moment.
        return isinstance(error, self._library.CatalogException) and _ARROW_SCAN in str(error)

    def succeeded(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Format.succeeded`."""
        return database.succeeded(self, self._table, columns)

    @contextlib.contextmanager
    def session(self, *, read_only: bool = False) -> Generator[Session, None, None]:
        """Open the file, and wait a while for a process that has it open."""
        give_up_at = time.monotonic() + _WAIT_FOR_FILE_S
        del read_only  # two threads of one process must open a file in the same way
        while True:
            try:
                connection = self._library.connect(
                    self._file, config={"memory_limit": _MEMORY, "threads": 2}
                )
            except self._library.IOException as error:
                if "lock" not in str(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(_LOOK_S)
            else:
                break
        with connection:
            yield _Session(connection)


class _Session:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(sql).fetchall()
        return found

    def schema_of(self, sql: str) -> pa.Schema:
        return self._connection.sql(sql).to_arrow_table().schema

    def stage(self, rows: StagedRows) -> None:
        self._connection.register("batchrouter_rows", rows.reader())
        self._connection.execute(
            f"create or replace temp table {STAGED} as select * from batchrouter_rows"  # noqa: S608 - fixed names
        )
        self._connection.unregister("batchrouter_rows")

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        yield from self._connection.sql(sql).to_arrow_reader(_READ_ROWS)


@contextlib.contextmanager
def _explained(location: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"the table {location} cannot be written: {error.strerror or error}. It is as it was:"
            " name a file in a folder that you may write to"
        ) from error


def _library() -> Any:
    try:
        import duckdb  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise MissingExtraError.for_extra("tables", needed_for="a DuckDB table as sink") from None
    return duckdb
