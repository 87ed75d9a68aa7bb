"""What databases share: rows go into a temporary table, and then over in one transaction.

Loading takes as long as it takes, and holds no lock on the table. The transaction that follows
inserts from one table into another, and writes the purchase into `_batchrouter_landings`, a table
beside the rows: of two landings of a purchase the second finds it there.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from batchrouter.errors import SinkError
from batchrouter.killpoints import reached
from batchrouter.landing.sinks.staged import StagedRows
from batchrouter.landing.sinks.table import Landing, own_rows, same_keys, sql_name, sql_text
from batchrouter.manifest.arrow import DataType

STAGED = "batchrouter_staged"
_LANDINGS = "_batchrouter_landings"


@dataclass(frozen=True, slots=True)
class TableName:
    """A table, in a schema or in the one that the connection begins with."""

    schema: str
    table: str

    @classmethod
    def read(cls, text: str) -> "TableName":
        """Read `table` or `schema.table`; names hold no dots.

        Raises:
            SinkError: It has more parts, or an empty one.

        Example:
            >>> TableName.read("public.tickets").quoted
            '"public"."tickets"'
        """
        parts = text.split(".")
        if len(parts) > 2 or not all(parts):  # noqa: PLR2004 - schema and table
            raise SinkError(f"sink: {text!r} names no table: write <table> or <schema>.<table>")
        return cls(parts[0] if len(parts) > 1 else "", parts[-1])

    @property
    def quoted(self) -> str:
        """As SQL writes it."""
        name = sql_name(self.table)
        return f"{sql_name(self.schema)}.{name}" if self.schema else name

    @property
    def landings(self) -> "TableName":
        """The table of the purchases that have landed, beside it."""
        return TableName(self.schema, _LANDINGS)


class Session(Protocol):
    """An open connection in which one transaction is made by hand."""

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""
        ...

    def stage(self, rows: StagedRows) -> None:
        """Make the temporary table `STAGED` of the rows."""
        ...

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Run a query, in flat memory."""
        ...


class Dialect(Protocol):
    """What one database says in its own way."""

    def session(self, *, read_only: bool = False) -> contextlib.AbstractContextManager[Session]:
        """Connect."""
        ...

    def columns(self, session: Session, table: TableName) -> pa.Schema | None:
        """Give the table's columns; None when there is no table."""
        ...

    def type_name(self, kind: DataType) -> str:
        """Name a type that `Format.stored` gives."""
        ...

    def begin(self, session: Session, table: TableName) -> None:
        """Begin the transaction, and keep other writers of this table out until its end."""
        ...

    def comments(self, landing: Landing, table: TableName) -> Iterator[str]:
        """Give the statements that write comments, of databases that have them."""
        ...


def commit(dialect: Dialect, table: TableName, landing: Landing, rows: StagedRows) -> None:
    """Load the rows, and put them over in one transaction.

    What a database raises goes through, and the transaction is rolled back.
    """
    with dialect.session() as session:
        session.stage(rows)
        with _transaction(dialect, session, table):
            landings = _landings(dialect, session, table)
            marker = sql_text(f"{landing.marker} {table.table}")
            known = session.run(f"select 1 from {landings} where marker = {marker}")  # noqa: S608 - quoted above
            if landing.is_done(is_marked=bool(known)):
                return
            _make_table(dialect, session, table, landing)
            for sql in _moves(table, landing):
                session.run(sql)
            reached("landing.mid_commit")
            if not known:
                who = landing.identity
                values = (who.job_name, who.run_key, who.models, table.table)
                told = ", ".join(sql_text(each) for each in values)
                session.run(
                    f"insert into {landings} values ({marker}, {told}, {rows.rows})"  # noqa: S608 - quoted above
                )
            for sql in dialect.comments(landing, table):
                session.run(sql)


@contextlib.contextmanager
def _transaction(
    dialect: Dialect, session: Session, table: TableName
) -> Generator[None, None, None]:
    dialect.begin(session, table)
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            session.run("rollback")
        raise
    session.run("commit")


def _landings(dialect: Dialect, session: Session, table: TableName) -> str:
    name = table.landings
    # Asked first: to make a table that is there already still needs leave to make tables.
    if dialect.columns(session, name) is None:
        session.run(
            f"create table {name.quoted} (marker varchar(200) primary key, job text,"
            " run_key text, models text, table_name text, landed_rows bigint)"
        )
    return name.quoted


def _make_table(dialect: Dialect, session: Session, table: TableName, landing: Landing) -> None:
    there = dialect.columns(session, table)
    if there is None:
        columns = ", ".join(
            f"{sql_name(each.name)} {dialect.type_name(each.type)}" for each in landing.schema
        )
        session.run(f"create table {table.quoted} ({columns})")
        return
    for each in landing.new_columns:
        if each.name not in there.names:
            kind = dialect.type_name(each.type)
            session.run(f"alter table {table.quoted} add column {sql_name(each.name)} {kind}")


def _moves(table: TableName, landing: Landing) -> Iterator[str]:
    """Give the statements that delete what the mode replaces, and insert the rows."""
    mode = landing.writing.mode
    if mode == "overwrite":
        yield f"delete from {table.quoted}"  # noqa: S608 - quoted
    elif mode == "replace_run":
        yield f"delete from {table.quoted} where {own_rows(landing.identity)}"  # noqa: S608 - quoted
    elif mode == "merge":
        same = same_keys(landing.writing.key_columns, "new", table.quoted)
        yield (
            f"delete from {table.quoted} where exists"  # noqa: S608 - quoted
            f" (select 1 from {STAGED} as new where {same})"
        )
    names = ", ".join(sql_name(name) for name in landing.schema.names)
    yield f"insert into {table.quoted} ({names}) select {names} from {STAGED}"  # noqa: S608 - quoted


def succeeded(
    dialect: Dialect, table: TableName, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield columns of the rows that succeeded."""
    names = ", ".join(sql_name(name) for name in columns)
    with dialect.session(read_only=True) as session:
        yield from session.stream(
            f"select {names} from {table.quoted} where {sql_name('_status')} = 'succeeded'"  # noqa: S608 - quoted
        )
