"""Anything that is a table → Arrow record batches, one after the other, in flat memory."""

from collections.abc import Mapping
from typing import Any

from batchrouter.job import Job
from batchrouter.job.source import Query
from batchrouter.manifest.sources import delta, iceberg
from batchrouter.manifest.sources.files import FileSource, Share
from batchrouter.manifest.sources.memory import MemorySource
from batchrouter.manifest.sources.sql import QuerySource
from batchrouter.manifest.sources.table import BATCH_BYTES, BATCH_ROWS, Source, sliced

__all__ = [
    "BATCH_BYTES",
    "BATCH_ROWS",
    "FileSource",
    "Share",
    "Source",
    "open_location",
    "open_source",
    "sliced",
]


def open_source(
    job: Job,
    *,
    version: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Open a job's source; of files only the first one's schema is read.

    Files are Parquet, JSON lines, CSV (every column is text: the format has no types; an empty
    field is NULL, `""` is empty text) and Arrow IPC. Folders named `day=2026-11-22` become
    columns, text or int64. `delta:` and `iceberg:` name tables of these formats, and
    `{sql, connection}` a query.

    Args:
        job: Its parameters must have values.
        version: What `Source.version` told when this run began to read; None for the newest.
        storage_options: What fsspec needs to open the location; never shown.

    Raises:
        SourceError: There is no such table, or it cannot be read.
        ConfigError: A connection is unknown, or a library or driver is not installed.
    """
    source = job.resolved_source
    if isinstance(source, Query):
        return QuerySource(source)
    if not isinstance(source, str):
        return MemorySource(source)
    return open_location(source, version=version, storage_options=storage_options)


def open_location(
    location: str,
    *,
    version: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Open the table at a path, glob or URL, as `open_source` does.

    Raises:
        SourceError: There is no such table, or it cannot be read.
        ConfigError: A library is not installed.
    """
    if location.startswith(delta.PREFIX):
        return delta.DeltaSource(location, version=version, storage_options=storage_options)
    if location.startswith(iceberg.PREFIX):
        return iceberg.IcebergSource(location, version=version, storage_options=storage_options)
    return FileSource(location, storage_options)
