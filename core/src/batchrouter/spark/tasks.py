"""Work on executors: each task says one line of JSON, and what it says is all that counts.

Spark hands the driver the result of one attempt of each task, however many ran. An error that
another attempt cannot mend is said, not raised, so that Spark does not try it four times; one that
may pass is raised, and Spark tries again.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import pyarrow as pa

from batchrouter import errors
from batchrouter.errors import BatchrouterError, SourceError, WorkerDiedError
from batchrouter.manifest.process import prepare_process
from batchrouter.manifest.workers import PROCESSES_VARIABLE
from batchrouter.spark.session import Session

Json = dict[str, Any]
Frame = Any
Batches = Iterator[pa.RecordBatch]

SAID = "task long, said string"
"""The columns of what tasks say."""


def partition_number() -> int:
    """Give the number of the partition that this task works on."""
    pyspark: Any = import_module("pyspark")
    return int(pyspark.TaskContext.get().partitionId())


def attempt_name(token: str, number: int) -> str:
    """Name a file as no other attempt of any task does."""
    return f"{token}-{number:06d}-{secrets.token_hex(5)}"


def numbers_in(batches: Batches) -> Iterator[int]:
    """Read the numbers of units that a task was given."""
    for batch in batches:
        numbers: Any = batch.column(0)
        yield from numbers.to_pylist()


def said(number: int, work: Callable[[], Json]) -> pa.RecordBatch:
    """Do a task's work, and put into a row what it says."""
    prepare_process()
    # The executor's other cores have tasks of their own.
    os.environ[PROCESSES_VARIABLE] = "1"
    try:
        told = work()
    except BatchrouterError as error:
        if error.retryable:
            raise
        told = {"error": type(error).__name__, "message": str(error)}
    return pa.record_batch({"task": pa.array([number], pa.int64()), "said": [json.dumps(told)]})


def collected(frame: Frame) -> list[Json]:
    """Run tasks, and give what each said, by its number.

    Raises:
        BatchrouterError: What the first task said that could not do its work.
        SourceError: Spark cannot read the table.
        WorkerDiedError: A task failed as often as Spark tries it.
    """
    try:
        rows = sorted((row["task"], row["said"]) for row in frame.collect())
    except Exception as error:  # py4j, gRPC and Spark share no base, and each says it in its way
        raise failure_of(error) from error
    results: list[Json] = [json.loads(said) for _, said in rows]
    for result in results:
        if "error" in result:
            kind = getattr(errors, result["error"], BatchrouterError)
            raise kind(result["message"])
    return results


def each(
    spark: Session, units: Sequence[Mapping[str, Any]], work: Callable[[Json], Json]
) -> list[Json]:
    """Do units of work, a task each, and give what each said in the order of the units.

    Raises:
        BatchrouterError: As `collected`.
    """
    if not units:
        return []
    told = [json.dumps(unit) for unit in units]

    def task(batches: Batches) -> Batches:
        for number in numbers_in(batches):
            yield said(number, partial(work, json.loads(told[number])))

    frame = spark.range(0, len(units), 1, len(units))
    results = collected(frame.mapInArrow(task, SAID))
    if len(results) != len(units):
        raise WorkerDiedError(f"Spark answered for {len(results)} of {len(units)} tasks; run again")
    return results


def failure_of(error: Exception) -> BatchrouterError:
    """Say what Spark's own error means for a run."""
    told = str(error).strip().split("\n", 1)[0][:500]
    name = type(error).__name__
    if name == "AnalysisException":
        return SourceError(f"source: Spark cannot read it: {told}")
    return WorkerDiedError(
        f"a Spark job failed ({name}: {told}); nothing of this attempt was kept: run it again, or"
        " look into the executors' logs"
    )
