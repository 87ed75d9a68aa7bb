"""The columns of two tables, compared as a table keeps them, and rows in a table's types.

Formats and databases have fewer types than Arrow. What has no counterpart is widened where that
loses nothing (`uint64` to a decimal, `float16` to `float32`), and text otherwise; only nanoseconds
are cut, to microseconds. Text is written as in a prompt: `manifest.rendering` has the table.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from batchrouter.errors import SinkError
from batchrouter.manifest.arrow import Array, DataType
from batchrouter.manifest.rendering import UnrenderableError, plain, plain_type, rendered

_WIDENED = {
    pa.int8(): pa.int32(), pa.int16(): pa.int32(), pa.int32(): pa.int32(), pa.int64(): pa.int64(),
    pa.uint8(): pa.int32(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(), pa.float32(): pa.float32(), pa.float64(): pa.float64(),
    pa.bool_(): pa.bool_(),
    pa.null(): pa.string(), pa.string(): pa.string(), pa.large_string(): pa.string(),
    pa.binary(): pa.binary(), pa.large_binary(): pa.binary(),
    pa.date32(): pa.date32(), pa.date64(): pa.date32(),
}  # fmt: skip
_MOST_DIGITS = 38


class UnstorableError(ValueError):
    """A table has no type for a column."""


def lake_type(kind: DataType) -> DataType:
    """Give the type that Delta and Iceberg keep a type as.

    Raises:
        UnstorableError: Durations, intervals and unions have none.

    Example:
        >>> lake_type(pa.uint16()), lake_type(pa.timestamp("ns")), lake_type(pa.time32("s"))
        (DataType(int32), TimestampType(timestamp[us]), DataType(string))
    """
    kind = _unwrapped(kind)
    if pt.is_struct(kind) and kind.num_fields:
        return pa.struct([(each.name, lake_type(each.type)) for each in kind.fields])
    if pt.is_map(kind):
        return pa.map_(lake_type(kind.key_type), lake_type(kind.item_type))
    return pa.list_(lake_type(_element(kind))) if _is_list(kind) else _flat_type(kind)


def database_type(kind: DataType) -> DataType:
    """Give the type that a database keeps a type as, which has no nested ones but lists of numbers.

    Example:
        >>> database_type(pa.list_(pa.float32(), 3)), database_type(pa.list_(pa.string()))
        (ListType(list<item: float>), DataType(string))
    """
    kind = _unwrapped(kind)
    if _is_list(kind):
        element = _element(kind)
        return pa.list_(_flat_type(element)) if pt.is_floating(element) else pa.string()
    is_nested = pt.is_struct(kind) or pt.is_map(kind)
    return pa.string() if is_nested else _flat_type(kind)


def _unwrapped(kind: DataType) -> DataType:
    kind = plain_type(kind)
    if not isinstance(kind, pa.BaseExtensionType):
        return kind
    is_text = kind.extension_name in {"arrow.uuid", "arrow.json"}
    return pa.string() if is_text else _unwrapped(kind.storage_type)


def _flat_type(kind: DataType) -> DataType:
    if kind in _WIDENED:
        return _WIDENED[kind]
    if pt.is_decimal(kind):
        fits = kind.precision <= _MOST_DIGITS
        return pa.decimal128(kind.precision, kind.scale) if fits else pa.string()
    if pt.is_timestamp(kind):
        return pa.timestamp("us", "UTC") if kind.tz else pa.timestamp("us")
    if pt.is_time(kind) or pt.is_struct(kind):
        return pa.string()
    if pt.is_fixed_size_binary(kind):
        return pa.binary()
    raise UnstorableError(f"{kind} has no counterpart")


def _element(kind: Any) -> DataType:
    return kind.value_type


def _is_list(kind: DataType) -> bool:
    return pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)


def stored_batch(
    batch: pa.RecordBatch, schema: pa.Schema, constants: Mapping[str, str], location: str
) -> pa.RecordBatch:
    """Give rows in a table's types, with columns that have one value.

    Raises:
        SinkError: A value does not go into the type; the message names the column.
    """
    arrays: list[Array] = []
    for field in schema:
        if field.name in constants:
            value = pa.scalar(constants[field.name], field.type)
            arrays.append(pa.repeat(value, len(batch)))
            continue
        try:
            arrays.append(_stored_array(batch.column(field.name), field.type))
        except pa.ArrowException as error:
            raise SinkError(
                f"the table {location} cannot take the column {field.name!r}: {error}. The table is"
                " as it was: leave the column out of `keep`, or cast it in the source"
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _stored_array(array: Array, kind: DataType) -> Array:
    array = plain(array)
    if array.type.equals(kind):
        return array
    if pt.is_string(kind) and not pt.is_large_string(array.type):
        return _texts(array)
    if isinstance(array.type, pa.BaseExtensionType):
        return _stored_array(array.storage, kind)
    # What is not safe here is nanoseconds alone: every other cast widens.
    return array.cast(kind, safe=not pt.is_timestamp(kind))


def _texts(array: Array) -> Array:
    try:
        return rendered(array).cast(pa.string())
    except UnrenderableError:
        # Paid rows must land: what is no JSON, such as NaN in a list, is written as Python does.
        written = (None if v is None else json.dumps(v, default=str) for v in array.to_pylist())
        return pa.array(written, pa.string())


def stored(schema: pa.Schema) -> pa.Schema:
    """Give the schema that a Parquet file of these columns has when it is read again.

    Parquet has no seconds and no large dictionaries, so a written type may come back as
    another one; what is compared with a file's columns must have gone the same way.

    Example:
        >>> stored(pa.schema([("at", pa.timestamp("s"))])).field("at").type
        TimestampType(timestamp[ms])
    """
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    file.seek(0)
    return pq.read_schema(file)


def differences(table: pa.Schema, rows: pa.Schema, *, evolve: bool = False) -> list[str]:
    """Say in which columns rows differ from a table; order does not matter.

    Args:
        table: The table's columns.
        rows: The rows' columns, as the table would keep them.
        evolve: Leave out the columns that only one of them has.

    Example:
        >>> table = pa.schema([("id", pa.int64()), ("label", pa.string())])
        >>> differences(table, pa.schema([("id", pa.string())]))
        ['id is int64 in the table and string now', 'label (string) is only in the table']
    """
    told: list[str] = []
    for field in table:
        if field.name not in rows.names:
            told += [] if evolve else [f"{field.name} ({field.type}) is only in the table"]
        elif rows.field(field.name).type != field.type:
            now = rows.field(field.name).type
            told.append(f"{field.name} is {field.type} in the table and {now} now")
    if not evolve:
        told += [
            f"{each.name} ({each.type}) is new" for each in rows if each.name not in table.names
        ]
    return told
