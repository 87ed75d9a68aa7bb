"""A query → record batches, streamed by ADBC; nothing of it is committed.

A query without ORDER BY may give its rows in another order the next time. A build reads it once,
and keeps the rows in the snapshot, which landing joins to: nothing reads the query again.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchrouter.errors import SourceError
from batchrouter.job.source import Query
from batchrouter.manifest.arrow import Array, DataType, Field
from batchrouter.manifest.connections import Connection, connection_named
from batchrouter.manifest.rendering import plain, plain_type
from batchrouter.manifest.sources.table import BATCH_BYTES, BATCH_ROWS, sliced

_STREAMING = {
    "postgresql": {"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)},
    "sqlite": {"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)},
}
_TYPMOD_HEADER = 4
_MOST_DIGITS = 38


class QuerySource:
    """What a query gives.

    Raises:
        ConfigError: The connection is unknown, or its driver is not installed.
        SourceError: No connection, or the query is wrong; the message is the driver's.
    """

    version = None

    def __init__(self, query: Query) -> None:
        self._query = query
        # A comment at the end must not swallow what a driver writes after the query.
        self._sql = f"{query.sql.strip().rstrip(';')}\n"
        self._connection: Connection = connection_named(query.connection)
        with self._cursor() as cursor:
            self._given = self._schema_of(cursor)
        self.schema = pa.schema([(each.name, _readable(each)) for each in self._given])

    def _schema_of(self, cursor: Any) -> pa.Schema:
        from adbc_driver_manager import NotSupportedError  # noqa: PLC0415 - an extra

        with contextlib.suppress(NotSupportedError):
            schema: pa.Schema = cursor.adbc_execute_schema(self._sql)
            return schema
        cursor.execute(self._sql)
        with cursor.fetch_record_batch() as reader:
            return reader.schema

    @contextlib.contextmanager
    def _cursor(self) -> Generator[Any, None, None]:
        name = self._query.connection

        def told(message: str) -> SourceError:
            if "Type mismatch" in message:
                message += (
                    f"; SQLite columns have no types, and the first {BATCH_ROWS} rows decide: write"
                    " coalesce(column, '') or cast(column as text) in the query"
                )
            return SourceError(f"source: connection {name!r}: {message}")

        with (
            self._connection.refusing(told),
            contextlib.closing(self._connection.open(read_only=True)) as opened,
            contextlib.closing(opened.cursor()) as cursor,
        ):
            options = _STREAMING.get(self._connection.driver)
            if options:
                cursor.adbc_statement.set_options(**options)
            yield cursor

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Run the query and yield its rows; see `Source.batches`."""
        wanted = pa.schema([self.schema.field(name) for name in columns])
        with self._cursor() as cursor:
            cursor.execute(self._sql)
            with cursor.fetch_record_batch() as reader:
                self._check_same(reader.schema)
                for batch in reader:
                    arrays = [
                        self._cast(batch.column(name), wanted.field(name)) for name in columns
                    ]
                    yield from sliced(pa.RecordBatch.from_arrays(arrays, schema=wanted))

    def _check_same(self, schema: pa.Schema) -> None:
        if not schema.equals(self._given):
            raise SourceError(
                f"source: connection {self._query.connection!r}: the query gives other columns than"
                " a moment ago; run it again"
            )

    def _cast(self, array: Array, field: Field) -> Array:
        stored = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
        if field.type.equals(array.type):
            return array
        try:
            stored = plain(stored)
            return stored if stored.type.equals(field.type) else stored.cast(field.type)
        except pa.ArrowException as error:
            raise SourceError(
                f"source: column {field.name!r}: {str(error).splitlines()[0]}; cast it to text in"
                " the query"
            ) from None


def _readable(field: Field) -> DataType:
    """Give the type that a column is read as.

    What a driver knows no Arrow type for is opaque: text, or bytes that have no rendering.
    Postgres' numeric is one, and a decimal where the column says its precision and scale.
    """
    kind = field.type
    if getattr(kind, "extension_name", None) != "arrow.opaque":
        return plain_type(kind)
    if pt.is_string(kind.storage_type) and kind.type_name == "numeric":
        return _decimal(field) or pa.string()
    return plain_type(kind.storage_type)


def _decimal(field: Field) -> DataType | None:
    packed = int((field.metadata or {}).get(b"POSTGRESQL:typmod", b"-1")) - _TYPMOD_HEADER
    if packed < 0:
        return None
    digits, scale = packed >> 16, packed & 0x7FF
    fits = 0 < digits <= _MOST_DIGITS and 0 <= scale <= digits
    return pa.decimal128(digits, scale) if fits else None
