"""The proof that no two rows of a table share a key, by Spark, over the snapshots of the build.

The snapshots are what is bought; the table itself may have changed since. Ids are grouped by
Spark; only of those that stand twice does the driver read the keys, to name them.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import fsspec
import pyarrow as pa

from batchrouter.errors import DuplicateKeyError, ManifestError
from batchrouter.manifest.arrow import pc, pq
from batchrouter.manifest.built import BuiltPart
from batchrouter.manifest.keys import shown_key, typed_keys
from batchrouter.spark.session import Session
from batchrouter.spark.tasks import Batches, failure_of, numbers_in

PARTITION_ROWS = 1 << 33
"""Places that a partition has in `_row`, as in Spark's own numbers."""

_NAMED = 5
_COLUMNS = ["_item_id", "_row"]
_BATCH_ROWS = 64 * 1024


def refuse_duplicates(
    spark: Session,
    fs: fsspec.AbstractFileSystem,
    rows_dir: str,
    built: Sequence[BuiltPart],
    names: tuple[str, ...],
) -> None:
    """Raise when two rows share a key.

    Raises:
        DuplicateKeyError: Names the first keys, in how many rows each stands, and two of them.
        ManifestError: Two different keys have one 128-bit hash.
        WorkerDiedError: Spark cannot count them.
    """
    paths = [f"{rows_dir}/{part.rows_path}" for part in built]
    repeated = _repeated(spark, fs, paths)
    told: list[str] = []
    for count, *rows in repeated:
        first, second = (_row_of(fs, paths, row, names) for row in rows)
        shown = [shown_key(each, names, 0) for each in (first, second)]
        keys = [typed_keys(each.column(name) for name in names)[0] for each in (first, second)]
        if keys[0] != keys[1]:
            raise ManifestError(
                f"the keys {shown[0]} and {shown[1]} have one item id; add a column to `key`"
            )
        partitions = sorted({row // PARTITION_ROWS for row in rows})
        where = " and ".join(map(str, partitions))
        told.append(f"{shown[0]} in {count} rows (Spark partition {where})")
    if told:
        raise DuplicateKeyError(
            f"a key must stand in one row only: {'; '.join(told)};"
            " remove the repeated rows from the source, or add a column to `key`"
        )


def _repeated(
    spark: Session, fs: fsspec.AbstractFileSystem, paths: list[str]
) -> list[tuple[int, int, int]]:
    """Give for some ids that stand more than once how often, and the first and the last row."""

    def ids(batches: Batches) -> Batches:
        for number in numbers_in(batches):
            yield from _columns_of(fs, paths[number], _COLUMNS)

    rows = spark.range(0, len(paths), 1, len(paths)).mapInArrow(ids, "_item_id string, _row long")
    spoken: Any = import_module("pyspark.sql.functions")
    try:
        counted = rows.groupBy("_item_id").agg(
            spoken.count("_row").alias("times"),
            spoken.min("_row").alias("first"),
            spoken.max("_row").alias("last"),
        )
        found = counted.where("times > 1").orderBy("first").limit(_NAMED).collect()
    except Exception as error:  # py4j, gRPC and Spark share no base, and each says it in its way
        raise failure_of(error) from error
    return [(row["times"], row["first"], row["last"]) for row in found]


def _columns_of(
    fs: fsspec.AbstractFileSystem, path: str, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    with fs.open(path, "rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH_ROWS, columns=list(names), use_threads=False)


def _row_of(
    fs: fsspec.AbstractFileSystem, paths: Sequence[str], row: int, names: Sequence[str]
) -> pa.RecordBatch:
    """Find the key of one row; the parts stand in the order of their rows."""
    for path in paths:
        for batch in _columns_of(fs, path, ["_row", *names]):
            if len(batch) and batch.column("_row")[-1].as_py() >= row:
                return batch.filter(pc.equal(batch.column("_row"), row))
    raise ManifestError("a row snapshot of this build has changed; build the run again")
