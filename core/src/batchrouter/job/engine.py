"""Where a job's table is built and landed: in this process, or on Apache Spark."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from batchrouter.job.credentials import credential_problems

if TYPE_CHECKING:
    from batchrouter.job.job import Job

SPARK = "spark"
_OTHER_TABLES = ("delta:", "iceberg:")
_OTHER_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".arrow", ".feather", ".gz", ".zst")
_FORM = "`spark`, or `spark:` and a master or Spark Connect URL, such as spark:sc://host:15002"


def checked_engine(engine: Any) -> Any:
    """Check an engine's form.

    Raises:
        ValueError: It is none; the message says how it is written.
    """
    if engine is None:
        return None
    kind, colon, place = engine.partition(":") if isinstance(engine, str) else ("", "", "")
    if kind != SPARK or (colon and not place):
        raise ValueError(f"must be {_FORM}")
    return engine


def engine_place(engine: str) -> str:
    """Give the master or Spark Connect URL; empty when the environment says it.

    Example:
        >>> engine_place("spark:sc://host:15002"), engine_place("spark")
        ('sc://host:15002', '')
    """
    return engine.partition(":")[2]


def is_spark_frame(source: Any) -> bool:
    """Tell a Spark DataFrame, classic or of Spark Connect, without importing Spark."""
    return type(source).__module__.startswith("pyspark.sql.") and hasattr(source, "mapInArrow")


def engine_problems(job: "Job") -> Iterator[str]:
    """Yield what a job asks of Spark that only one machine does."""
    engine = job.engine
    if engine is not None:
        yield from credential_problems(engine, "engine", is_location=True)
        if engine_place(engine).startswith("sc://") and "token=" in engine:
            yield "engine: holds a token; keep it in the environment, in SPARK_REMOTE"
    if engine is None and not is_spark_frame(job.source):
        return
    if job.dedupe:
        yield "dedupe: Spark finds no equal requests; leave it out, or build on one machine"
    if job.incremental:
        yield (
            "incremental: Spark does not ask the table what it holds; give only the new rows, such"
            " as by an anti join, or build on one machine"
        )
    if not is_spark_frame(job.source) and not _is_read_by_spark(job.source):
        yield (
            "source: Spark reads Parquet by path, a table of its catalogs as table:NAME, or a"
            " DataFrame; make a DataFrame of anything else"
        )


def _is_read_by_spark(source: Any) -> bool:
    if not isinstance(source, str):
        return False
    name = source.rstrip("/").rpartition("/")[2].lower()
    return not source.startswith(_OTHER_TABLES) and not name.endswith(_OTHER_FILES)
