"""The build: a job's table → manifests and row snapshots, in one pass and in flat memory."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import fsspec
import pyarrow as pa

from batchrouter.job import Job
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.check import check_columns
from batchrouter.manifest.cutting import write_batch
from batchrouter.manifest.keys import SeenKeys, refuse_duplicates
from batchrouter.manifest.parts import PartFiles, PartLimits
from batchrouter.manifest.process import prepare_process
from batchrouter.manifest.repeats import without_repeats
from batchrouter.manifest.shares import SharedRendering
from batchrouter.manifest.snapshot import snapshot_schema
from batchrouter.manifest.sources import Source, open_source
from batchrouter.manifest.storing import storing
from batchrouter.manifest.unchanged import UnchangedRows
from batchrouter.manifest.writing import BatchLines, BatchWriter


def build_manifest(
    job: Job,
    *,
    fs: fsspec.AbstractFileSystem,
    manifest_dir: str,
    rows_dir: str,
    token: str,
    on_progress: Callable[[int], None] | None = None,
    limit: int | None = None,
    bought: Iterable[pa.RecordBatch] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_version: str | None = None,
    on_source_version: Callable[[str], None] | None = None,
) -> BuiltManifest:
    """Write a job's manifest and its row snapshot, part by part.

    Writes `<manifest_dir>/<token>-part-00000.jsonl` and `<rows_dir>/<token>-part-00000.parquet`,
    and so on (`.jsonl.zst` with `parts.compression`); a part ends at the job's `parts` or at the
    router's limits. A snapshot has a row for each source row, in order: `snapshot_schema` says
    which columns.

    Args:
        job: What to build; its parameters must have values.
        fs: Where to write; streams are sequential, so object stores will do.
        manifest_dir: Folder for the manifests, on `fs`; made if need be.
        rows_dir: Folder for the snapshots, on `fs`; made if need be.
        token: Starts the files' names; choose it unique per attempt.
        on_progress: Called with the number of rows done, after each batch.
        limit: Read only the first rows.
        bought: The key's columns and `_request_hash` of the rows that the table holds as
            succeeded: rows with the same key and request are left out, and counted as unchanged.
        storage_options: What fsspec needs to open the source; never shown.
        source_version: The version of the source to read; None for the newest.
        on_source_version: Told the version before a row is read, when none was given and the
            source has versions.

    Raises:
        SourceError: The table cannot be read, or lacks a column.
        ManifestError: A row cannot become a request; names the column and the row.
        NullKeyError: A key column holds NULL.
        DuplicateKeyError: Two rows share a key.
        SinkError: What is `bought` cannot be compared with the source.
        StorageError: The files cannot be written.
        WorkerDiedError: One of the processes that a large Parquet table is shared among died.
        In each case the files of this build are removed.
    """
    started = time.monotonic()
    prepare_process()
    source = open_source(job, version=source_version, storage_options=storage_options)
    check_columns(job, source.schema)
    schema = snapshot_schema(job, source.schema)
    if source_version is None and source.version is not None and on_source_version:
        on_source_version(source.version)
    for folder in (manifest_dir, rows_dir):
        with storing(folder):
            fs.makedirs(folder, exist_ok=True)
    files = PartFiles(
        fs,
        (manifest_dir, rows_dir),
        token,
        schema,
        PartLimits.of(job.parts),
        is_packed=job.parts is not None and job.parts.compression is not None,
    )
    try:
        with UnchangedRows(bought, job.key_columns, schema) as unchanged:
            cap = _Build(job, source, files, schema, unchanged).run(on_progress, limit)
    except BaseException:
        files.discard()
        raise
    parts = tuple(files.closed)
    return BuiltManifest(
        parts=parts,
        row_count=sum(part.row_count for part in parts),
        item_count=sum(part.item_count for part in parts),
        skipped_count=sum(part.skipped_count for part in parts),
        repeated_count=sum(part.repeated_count for part in parts),
        unchanged_count=unchanged.count,
        max_output_tokens=cap,
        duration_s=round(time.monotonic() - started, 3),
    )


def _told(
    batches: Iterator[BatchLines], on_progress: Callable[[int], None] | None
) -> Generator[BatchLines, None, None]:
    """Tell the rows that were read, after each batch."""
    done = 0
    for batch in batches:
        yield batch
        done += batch.row_count
        if on_progress:
            on_progress(done)


class _Build:
    """One pass over the source."""

    def __init__(
        self,
        job: Job,
        source: Source,
        files: PartFiles,
        schema: pa.Schema,
        unchanged: UnchangedRows,
    ) -> None:
        self._job = job
        self._source = source
        self._files = files
        self._schema = schema
        self._unchanged = unchanged

    def run(self, on_progress: Callable[[int], None] | None, limit: int | None) -> int | None:
        """Write everything; returns the largest output cap."""
        bought = self._unchanged.bought
        shared = (
            SharedRendering.of(self._job, self._source, self._schema, bought)
            if limit is None
            else None
        )
        writer = BatchWriter(self._job, self._schema, bought)
        batches = _told(shared.batches() if shared else self._batches(writer, limit), on_progress)
        if self._job.dedupe:
            batches = without_repeats(batches, self._schema)
        with SeenKeys() as seen, contextlib.closing(batches):
            for batch in batches:
                seen.add(batch.digests)
                write_batch(batch, self._files)
                self._unchanged.add(batch.snapshot)
            self._files.close()
            refuse_duplicates(seen, self._job.key_columns, self._keys_again)
        cap = self._job.request.max_output_tokens
        return (shared or writer).max_output_tokens if cap is None else cap

    def _keys_again(self) -> Iterator[pa.RecordBatch]:
        yield from self._files.rows_again(["_row", *self._job.key_columns])
        yield from self._unchanged.keys()

    def _batches(self, writer: BatchWriter, limit: int | None) -> Iterator[BatchLines]:
        row, left = 0, limit
        for batch in self._source.batches(writer.columns) if left != 0 else ():
            piece = batch if left is None else batch.slice(0, left)
            yield writer.lines_of(piece, row)
            row += len(piece)
            if left is not None:
                left -= len(piece)
                if not left:
                    return
