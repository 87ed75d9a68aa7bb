"""A table of PostgreSQL: bulk loaded by COPY into a temporary table, then one transaction.

Readers see the old rows until the commit, and wait for nothing. Writers of one table wait for one
another by an advisory lock, at most a minute; a writer that stopped in its transaction is thrown
out by the server after that minute.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchrouter.errors import SinkError
from batchrouter.landing.sinks.adbc import AdbcSession, ConnectedTable, named
from batchrouter.landing.sinks.columns import database_type
from batchrouter.landing.sinks.database import Session, TableName
from batchrouter.landing.sinks.table import Landing, sql_name, sql_text
from batchrouter.manifest.arrow import DataType

_WAIT = "60s"
_TYPMOD_HEADER = 4
_TYPES: dict[DataType, str] = {
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.string(): "text",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp without time zone",
    pa.timestamp("us", "UTC"): "timestamp with time zone",
    pa.list_(pa.float32()): "real[]",
    pa.list_(pa.float64()): "double precision[]",
}
_READ = {name: kind for kind, name in _TYPES.items()} | {
    "character varying": pa.string(),
    "character": pa.string(),
    # Money's own type, where a table says `numeric` alone.
    "numeric": pa.decimal128(38, 12),
}


class PostgresFormat(ConnectedTable):
    """A table of PostgreSQL; see `Format` and `database.Dialect`.

    Args:
        place: `<connection>#<table>` or `<connection>#<schema>.<table>`.
        storage_options: Not used.
    """

    def __init__(self, place: str, storage_options: Mapping[str, Any] | None = None) -> None:
        del storage_options
        super().__init__("postgresql", place)

    def stored(self, kind: DataType) -> DataType:
        """See `Format.stored`."""
        return database_type(kind)

    def type_name(self, kind: DataType) -> str:
        """See `Dialect.type_name`."""
        if pt.is_decimal(kind):
            return f"numeric({kind.precision}, {kind.scale})"
        return _TYPES[kind]

    def columns(self, session: Session | None = None, table: TableName | None = None) -> Any:
        """See `Format.columns` and `Dialect.columns`."""
        if session is None:
            with self.session(read_only=True) as opened:
                return self.columns(opened, table)
        name = sql_text((table or self._table).quoted)
        found = session.run(
            "select attname::text, format_type(atttypid, null), atttypmod::int from pg_attribute"  # noqa: S608 - quoted
            f" where attrelid = to_regclass({name}) and attnum > 0 and not attisdropped"
            " order by attnum"
        )
        return named([(column, _type_of(kind, modifier)) for column, kind, modifier in found])

    def check_place(self) -> None:
        """See that the user may write the table, or make it."""
        table = self._table
        schema = sql_text(table.schema) if table.schema else "current_schema()"
        with self.session(read_only=True) as session:
            [(there, may_create)] = session.run(
                f"select to_regclass({sql_text(table.quoted)}) is not null,"  # noqa: S608 - quoted
                f" coalesce((select has_schema_privilege(oid, 'CREATE') from pg_namespace"
                f" where nspname = {schema}), false)"
            )
            landings = self.columns(session, table.landings) is not None
            lacks = [] if may_create or (there and landings) else ["CREATE on its schema"]
            for name in [table] * there + [table.landings] * landings:
                lacks += self._lacking(session, name)
        if lacks:
            raise SinkError(
                f"the table {self.location} cannot be written: the user of the connection lacks"
                f" {', '.join(lacks)}. The table is as it was: grant it, or name another sink"
            )

    def _lacking(self, session: Session, table: TableName) -> list[str]:
        asked = ("SELECT", "INSERT") + (() if table == self._table.landings else ("DELETE",))
        told = ", ".join(
            f"has_table_privilege(to_regclass({sql_text(table.quoted)}), '{each}')"
            for each in asked
        )
        [answers] = session.run(f"select {told}")
        return [
            f"{each} on {table.table}"
            for each, granted in zip(asked, answers, strict=True)
            if not granted
        ]

    def prepare(self, session: AdbcSession, *, read_only: bool) -> None:
        """Bound every wait."""
        del read_only
        session.run(f"set lock_timeout = '{_WAIT}'")
        session.run(f"set idle_in_transaction_session_timeout = '{_WAIT}'")

    def begin(self, session: Session, table: TableName) -> None:
        """Begin, alone among the writers of this table."""
        digest = hashlib.sha256(f"batchrouter {table.quoted}".encode()).digest()
        session.run("begin")
        session.run(
            f"select pg_advisory_xact_lock({int.from_bytes(digest[:8], signed=True)})::text"
        )

    def comments(self, landing: Landing, table: TableName) -> Iterator[str]:
        """See `Dialect.comments`; only the table's owner may write them."""
        owner = f"select relowner from pg_class where oid = {sql_text(table.quoted)}::regclass"  # noqa: S608 - quoted
        told = [f"comment on table {table.quoted} is {sql_text(landing.comment)};"]
        told += [
            f"comment on column {table.quoted}.{sql_name(name)} is {sql_text(about)};"
            for name, about in landing.column_comments.items()
        ]
        body = f"begin if pg_has_role(({owner}), 'USAGE') then {' '.join(told)} end if; end"
        yield f"do {sql_text(body)}"


def _type_of(name: str, modifier: int) -> DataType:
    packed = modifier - _TYPMOD_HEADER
    if name == "numeric" and packed >= 0:
        return pa.decimal128(min(packed >> 16, 38), packed & 0x7FF)
    return _READ.get(name) or pa.opaque(pa.string(), name, "PostgreSQL")
