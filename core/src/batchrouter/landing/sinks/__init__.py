"""Where landed rows go: one protocol, one commit a run, atomic and idempotent by run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from batchrouter.errors import ConfigError
from batchrouter.landing.report import LandingIdentity

_PARQUET = "parquet:"
_OTHER_KINDS = ("delta:", "iceberg:", "duckdb:", "postgresql:", "postgres:", "sqlite:", "mysql:")


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
        """Replace this job's and run's rows by these, all or none.

        Nothing is committed unless `batches` ends without an exception: that is how the
        landing refuses a table whose counts do not add up.

        Raises:
            SinkError: The table refuses; it is as it was.
        """
        ...


def open_sink(url: str, storage_options: Mapping[str, Any] | None = None) -> Sink:
    """Open the sink of a job; nothing is touched yet.

    Args:
        url: A path, any fsspec URL, or one of them after ``parquet:``: a Parquet directory.
        storage_options: Given to the filesystem; never shown.

    Raises:
        ConfigError: The URL is of no kind of sink, or its filesystem is not installed.

    Example:
        >>> open_sink("parquet:lake/tickets").location.endswith("/lake/tickets")
        True
    """
    from batchrouter.landing.sinks.parquet import ParquetSink  # noqa: PLC0415 - it imports Commit

    kind = next((each for each in _OTHER_KINDS if url.startswith(each)), None)
    if kind:
        raise ConfigError(f"sink: {kind} is not supported; name a Parquet directory (parquet:PATH)")
    return ParquetSink(url.removeprefix(_PARQUET), storage_options)
