"""A job's source → a Spark DataFrame of the columns that a build needs."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchrouter.job import Job
from batchrouter.job.engine import is_spark_frame
from batchrouter.spark.session import Session
from batchrouter.spark.tasks import Frame, failure_of

_TABLE = "table:"
_UTC = "UTC"


def frame_of(spark: Session, job: Job, limit: int | None = None) -> Frame:
    """Open a job's source on Spark; no row is read.

    Raises:
        SourceError: There is no such table.
    """
    source = job.resolved_source
    try:
        if is_spark_frame(source):
            frame = source
        elif source.startswith(_TABLE):
            frame = spark.read.table(source.removeprefix(_TABLE))
        else:
            frame = spark.read.parquet(source)
        return frame if limit is None else frame.limit(limit)
    except Exception as error:  # py4j, gRPC and Spark share no base, and each says it in its way
        raise failure_of(error) from error


def arrow_schema(frame: Frame) -> pa.Schema:
    """Give a frame's columns as Arrow's; times are in UTC, whatever the session's zone.

    Raises:
        SourceError: The frame cannot be analysed.
    """
    types: Any = import_module("pyspark.sql.pandas.types")
    try:
        schema: pa.Schema = types.to_arrow_schema(frame.schema, timezone=_UTC)
    except Exception as error:  # as above
        raise failure_of(error) from error
    # Only names and types: what Spark notes of a column must not make two runs' tables differ.
    return pa.schema([(field.name, field.type) for field in schema])


def selected(frame: Frame, names: Sequence[str]) -> Frame:
    """Take some columns; a dot in a name is part of it."""
    return frame.select(*(f"`{name.replace('`', '``')}`" for name in names))


def in_utc(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turn times of the session's zone into the same moments in UTC."""
    for batch in batches:
        types = [_utc(field.type) for field in batch.schema]
        if types == batch.schema.types:
            yield batch
            continue
        columns = [column.cast(kind) for column, kind in zip(batch.columns, types, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _utc(kind: Any) -> Any:
    return pa.timestamp("us", _UTC) if pt.is_timestamp(kind) and kind.tz else kind
