"""Two tables' columns, compared as Parquet keeps them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq


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


def differences(table: pa.Schema, rows: pa.Schema) -> list[str]:
    """Say in which columns rows differ from a table; order does not matter.

    Example:
        >>> table = pa.schema([("id", pa.int64()), ("label", pa.string())])
        >>> differences(table, pa.schema([("id", pa.string())]))
        ['id is int64 in the table and string now', 'label (string) is only in the table']
    """
    told: list[str] = []
    for field in table:
        if field.name not in rows.names:
            told.append(f"{field.name} ({field.type}) is only in the table")
        elif rows.field(field.name).type != field.type:
            now = rows.field(field.name).type
            told.append(f"{field.name} is {field.type} in the table and {now} now")
    told += [
        f"{field.name} ({field.type}) is new" for field in rows if field.name not in table.names
    ]
    return told
