"""Where landed rows go: one protocol, one commit a run, atomic and idempotent by run.

`parquet.ParquetSink` is a folder of files, one a run. Every other kind of table is a `Format` in
a module of its own, which knows how that table is read and committed to, and no other; what all of
them share stands in `table.TableSink`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import pyarrow as pa

from batchrouter.errors import ConfigError
from batchrouter.job.sink import KINDS, Mode, kind_of, place_of
from batchrouter.landing.report import LandingIdentity

_FORMATS = {
    "delta": "DeltaFormat",
    "duckdb": "DuckDBFormat",
    "iceberg": "IcebergFormat",
    "postgresql": "PostgresFormat",
    "sqlite": "SQLiteFormat",
}
"""Each stands in the module of its kind, which loads its library when it is opened."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a sink has committed.

    Attributes:
        location: Where the run's rows are, without credentials.
        rows: How many rows.
        bytes: Size of what was written.
    """

    location: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Writing:
    """How a job writes into its table.

    Attributes:
        mode: What becomes of the rows that are there: `replace_run` deletes those of this job and
            run key, `append` none, `overwrite` all, `merge` those with a key of the new rows.
        key_columns: The key that `merge` compares.
        evolve: Whether the table may get columns, and rows lack some.
    """

    mode: Mode = "replace_run"
    key_columns: tuple[str, ...] = ()
    evolve: bool = False


class Sink(Protocol):
    """A table that takes the rows of a run as one commit."""

    def current_schema(self, identity: LandingIdentity) -> pa.Schema | None:
        """Give the table's columns, apart from this run's rows; None for a new table."""
        ...

    def check(self, schema: pa.Schema, identity: LandingIdentity) -> None:
        """Raise `SinkError` when the table would refuse rows of these columns."""
        ...

    def succeeded(
        self, identity: LandingIdentity, key_columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the key's columns and `_request_hash` of the rows that succeeded, of all runs.

        Nothing for a table that is not there yet. Only what `mode: merge` can write to has it.

        Raises:
            SinkError: The table cannot be read, or lacks a column.
        """
        ...

    def write(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, identity: LandingIdentity
    ) -> Commit:
        """Commit these rows as the job's mode says, all or none, and once a purchase.

        Nothing is committed unless `batches` ends without an exception: that is how the
        landing refuses a table whose counts do not add up.

        Raises:
            SinkError: The table refuses; it is as it was.
        """
        ...


def open_sink(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    writing: Writing | None = None,
) -> Sink:
    """Open the sink of a job; nothing is touched yet.

    Args:
        url: A path, any fsspec URL, or one of them after ``parquet:``: a Parquet directory. Other
            kinds of tables as `job.sink.KINDS` writes them, such as ``delta:lake/tickets``.
        storage_options: Given to the filesystem; never shown.
        writing: The job's mode and key.

    Raises:
        ConfigError: The URL is of no kind of sink, or its connection is not in the environment.
        MissingExtraError: Its library is not installed.

    Example:
        >>> open_sink("parquet:lake/tickets").location.endswith("/lake/tickets")
        True
    """
    writing = writing or Writing()
    kind, place = kind_of(url), place_of(url)
    if kind == "parquet":
        parquet = import_module("batchrouter.landing.sinks.parquet")  # it imports Commit
        sink: Sink = parquet.ParquetSink(place, storage_options, writing)
        return sink
    if kind not in _FORMATS:
        raise ConfigError(f"sink: there is no sink {kind!r}; there are {', '.join(KINDS)}")
    own = import_module(f"batchrouter.landing.sinks.{kind}")
    table = import_module("batchrouter.landing.sinks.table")
    made: Sink = table.TableSink(getattr(own, _FORMATS[kind])(place, storage_options), writing)
    return made
