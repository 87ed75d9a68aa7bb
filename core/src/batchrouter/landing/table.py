"""The landed table: its columns in their order, and a record batch out of judged rows."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from batchrouter.landing.outcomes import Outcome
from batchrouter.landing.outputs import OutputReader

USD = pa.decimal128(38, 12)
TIME = pa.timestamp("us", "UTC")

_OWN = (
    ("_status", pa.string()),
    ("_error_code", pa.string()),
    ("_error_message", pa.string()),
    ("_raw_output", pa.string()),
    ("_provider", pa.string()),
    ("_model", pa.string()),
    ("_input_tokens", pa.int64()),
    ("_output_tokens", pa.int64()),
    ("_cost_usd", USD),
    ("_batch_id", pa.string()),
    ("_run_key", pa.string()),
    ("_request_hash", pa.string()),
    ("_completed_at", TIME),
)


def landed_schema(carried: Sequence["pa.Field[Any]"], reader: OutputReader) -> pa.Schema:
    """Give the columns: key and kept ones, the output's, then those that landing adds.

    Raises:
        ValueError: Two columns have one name, compared without case as databases do.
    """
    fields = [*carried, *reader.fields, *(pa.field(name, each) for name, each in _OWN)]
    seen: set[str] = set()
    for field in fields:
        if field.name.casefold() in seen:
            raise ValueError(f"the table would have two columns {field.name!r}; rename one")
        seen.add(field.name.casefold())
    return pa.schema(fields)


def landed_batch(
    schema: pa.Schema,
    rows: pa.RecordBatch,
    outcomes: Sequence[Outcome],
    reader: OutputReader,
    *,
    batch_id: str | None,
    run_key: str,
) -> pa.RecordBatch:
    """Put judged rows into columns.

    Args:
        schema: What `landed_schema` gave.
        rows: So many rows of the snapshot.
        outcomes: As many, in the same order.
        reader: The output's reader, which the values are from.
        batch_id: The part's batch; rows that were not sent have none.
        run_key: The run's key.
    """
    carried = len(schema) - len(reader.fields) - len(_OWN)
    columns = [rows.column(name) for name in schema.names[:carried]]
    columns += reader.arrays([each.value for each in outcomes])
    sent = [None if o.status == "skipped" else o.batch_id or batch_id for o in outcomes]
    columns += [
        pa.array([each.status for each in outcomes], pa.string()),
        pa.array([each.code for each in outcomes], pa.string()),
        pa.array([each.message for each in outcomes], pa.string()),
        pa.array([each.raw for each in outcomes], pa.string()),
        pa.array([each.provider for each in outcomes], pa.string()),
        pa.array([each.model for each in outcomes], pa.string()),
        pa.array([each.input_tokens for each in outcomes], pa.int64()),
        pa.array([each.output_tokens for each in outcomes], pa.int64()),
        _cast([each.cost_usd for each in outcomes], _usd, USD),
        pa.array(sent, pa.string()),
        pa.repeat(pa.scalar(run_key, pa.string()), len(outcomes)),
        rows.column("_request_hash").cast(pa.string()),
        _cast([each.completed_at for each in outcomes], _time, TIME),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(
    texts: list[str | None], cast: Callable[["pa.Array[Any]"], "pa.Array[Any]"], to: pa.DataType
) -> "pa.Array[Any]":
    """Cast a whole column; where that fails, one by one, and what makes no sense is NULL."""
    try:
        return cast(pa.array(texts, pa.string()))
    except pa.ArrowInvalid:
        return pa.array([_cast_one(text, cast) for text in texts], to)


def _cast_one(text: str | None, cast: Callable[["pa.Array[Any]"], "pa.Array[Any]"]) -> Any:
    try:
        return cast(pa.array([text], pa.string()))[0]
    except pa.ArrowInvalid:
        return None


def _usd(texts: "pa.Array[Any]") -> "pa.Array[Any]":
    return texts.cast(USD)


def _time(texts: "pa.Array[Any]") -> "pa.Array[Any]":
    return texts.cast(TIME)
