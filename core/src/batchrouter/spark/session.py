"""Which Spark a job runs on; nothing here loads Spark before it is needed."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from batchrouter.errors import ConfigError, MissingExtraError
from batchrouter.job import Job
from batchrouter.job.engine import engine_place, is_spark_frame

Session = Any
"""A `SparkSession`, classic or of Spark Connect: they share no class that is there in both."""

_CONNECT = "sc://"
_given: ContextVar[Session | None] = ContextVar("batchrouter_spark", default=None)


@contextmanager
def using(spark: Session) -> Generator[None]:
    """Let the runs of this thread land on a session, whatever their jobs say."""
    token = _given.set(spark)
    try:
        yield
    finally:
        _given.reset(token)


def uses_spark(job: Job) -> bool:
    """Tell whether a job is built and landed on Spark."""
    return job.engine is not None or is_spark_frame(job.source) or _given.get() is not None


def session_of(job: Job) -> Session:
    """Give the session of a job: the given one, its DataFrame's, or that of its `engine`.

    Where that names no place it is the active one, or one of SPARK_REMOTE or of Spark's own
    settings. What is started stays open, as Spark's sessions do.

    Raises:
        ConfigError: Spark does not start; without Java 17 it cannot.
        MissingExtraError: PySpark is not installed.
    """
    given = _given.get()
    if given is not None:
        return given
    if is_spark_frame(job.source):
        return job.source.sparkSession
    place = engine_place(job.engine or "")
    try:
        sql: Any = import_module("pyspark.sql")
    except ImportError:
        raise MissingExtraError.for_extra("spark", needed_for="engine: spark") from None
    active = None if place else sql.SparkSession.getActiveSession()
    return active if active is not None else _started(sql.SparkSession.builder, place)


def _started(builder: Any, place: str) -> Session:
    remote = place if place.startswith(_CONNECT) else "" if place else _remote()
    if not remote:
        check_java()
    builder = builder.remote(remote) if remote else builder
    builder = builder.master(place) if place and not remote else builder
    try:
        return builder.appName("batchrouter").getOrCreate()
    except Exception as error:  # py4j, gRPC and Spark share no base, and each says it in its way
        where = "Spark Connect" if remote else place or "Spark"
        raise ConfigError(
            f"engine: {where} does not answer or start ({type(error).__name__}); is the URL right,"
            " and the cluster up? Nothing was built or bought"
        ) from error


def _remote() -> str:
    return os.environ.get("SPARK_REMOTE", "")


def check_java() -> None:
    """See that there is a Java for a driver of our own.

    Raises:
        ConfigError: There is none; a cluster of Spark Connect needs none here.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    if shutil.which(java) is None:
        told = f"JAVA_HOME is {home}, where" if home else "JAVA_HOME is not set, and on PATH"
        raise ConfigError(
            f"engine: Spark needs Java 17 or newer: {told} there is no java. Install one, such as"
            " the package openjdk-17-jre-headless, or name a Spark Connect server, which needs no"
            " Java here: engine: spark:sc://host:15002"
        )
