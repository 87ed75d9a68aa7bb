"""The build on Spark: each task writes the manifests and snapshots of its partition.

A row's place in the source is its partition's number and its place in it, as Spark's own
`monotonically_increasing_id` has it: it rises over the parts, with gaps between partitions. So the
table is read once, and no task waits for the counts of those before it.

Kill points: those of `manifest.parts`, on the executors.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from batchrouter.errors import ConfigError, JobError, ManifestError, StorageError
from batchrouter.job import Job
from batchrouter.manifest.built import BuiltManifest, BuiltPart
from batchrouter.manifest.check import check_columns
from batchrouter.manifest.cutting import write_batch
from batchrouter.manifest.keys import shown_key
from batchrouter.manifest.parts import PartFiles, PartLimits
from batchrouter.manifest.shares import document_of
from batchrouter.manifest.snapshot import snapshot_schema
from batchrouter.manifest.sources import sliced
from batchrouter.manifest.storing import storing
from batchrouter.manifest.writing import BatchWriter
from batchrouter.spark.frames import arrow_schema, frame_of, in_utc, selected
from batchrouter.spark.keys import PARTITION_ROWS, refuse_duplicates
from batchrouter.spark.session import Session
from batchrouter.spark.tasks import (
    SAID,
    Batches,
    Json,
    attempt_name,
    collected,
    partition_number,
    said,
)

_PLACEHOLDER = "spark"


def build_manifest(
    df: Any, job: Job, url: str, *, storage_options: Mapping[str, Any] | None = None
) -> BuiltManifest:
    """Write the manifest and the row snapshot of a Spark DataFrame.

    Writes `<url>/manifest/<attempt>-part-00000.jsonl` and `<url>/rows/<attempt>-part-00000.parquet`
    for each part; a partition gives one part, or more where the job's `parts` or the router's
    limits cut it. How many parts there are is for `df.repartition` or `df.coalesce` to say.

    Args:
        df: The table, of a classic session or of Spark Connect; read once.
        job: What to build; its `source` is not looked at.
        url: The folder, as a path or fsspec URL that driver and executors share.
        storage_options: What fsspec needs to open it; sent to the executors.

    Returns:
        Counts and hashes of the parts; no row has come to the driver.

    Raises:
        SourceError: Spark cannot read the table, or it lacks a column.
        ManifestError: A row cannot become a request; names partition, row and key.
        NullKeyError, DuplicateKeyError: A key is NULL, or stands in two rows of any partitions.
        StorageError: The folder cannot be written, or the executors have another one.
        WorkerDiedError: A task failed as often as Spark tries it.

        In each case the files of this build are removed, as far as their tasks have ended.

    Example:
        >>> build_manifest(df, job, "s3://lake/run").item_count  # doctest: +SKIP
        10000000
    """
    try:
        fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"url: {error}") from error
    root = str(root).rstrip("/")
    return built_on_spark(
        job.model_copy(update={"source": df}),
        spark=df.sparkSession,
        fs=fs,
        folders=(f"{root}/manifest", f"{root}/rows"),
        token=secrets.token_hex(6),
    )


def built_on_spark(
    job: Job,
    *,
    spark: Session,
    fs: fsspec.AbstractFileSystem,
    folders: tuple[str, str],
    token: str,
    limit: int | None = None,
) -> BuiltManifest:
    """Build a job's own source; as `build_manifest`.

    Args:
        job: What to build.
        spark: Where.
        fs: The filesystem of the run folder; sent to the executors.
        folders: Of manifests and of snapshots; made if need be.
        token: Starts the files' names; choose it unique per attempt.
        limit: Take only so many rows.
    """
    started_s = time.monotonic()
    frame = frame_of(spark, job, limit)
    source_schema = arrow_schema(frame)
    check_columns(job, source_schema)
    for folder in folders:
        with storing(folder):
            fs.makedirs(folder, exist_ok=True)
    task = _PartitionTask(_document(job), fs, folders, token, snapshot_schema(job, source_schema))
    built: tuple[BuiltPart, ...] = ()
    try:
        chosen = selected(frame, BatchWriter(job, task.schema).columns)
        results = collected(chosen.mapInArrow(_rendering(task), SAID))
        built = tuple(_numbered(results)) or (_empty_part(task),)
        _check_there(fs, folders, built)
        refuse_duplicates(spark, fs, folders[1], built, job.key_columns)
    except BaseException:
        _remove_others(fs, folders, token, ())
        raise
    _remove_others(fs, folders, token, built)
    cap = job.request.max_output_tokens
    if cap is None:
        cap = max((each["cap"] for each in results if each["cap"]), default=None)
    return BuiltManifest(
        parts=built,
        row_count=sum(part.row_count for part in built),
        item_count=sum(part.item_count for part in built),
        skipped_count=sum(part.skipped_count for part in built),
        max_output_tokens=cap,
        duration_s=round(time.monotonic() - started_s, 3),
    )


@dataclass(frozen=True, slots=True)
class _PartitionTask:
    """What each task is given."""

    document: Json
    fs: fsspec.AbstractFileSystem
    folders: tuple[str, str]
    token: str
    schema: pa.Schema

    def files(self, job: Job, partition: int) -> PartFiles:
        return PartFiles(
            self.fs,
            self.folders,
            attempt_name(self.token, partition),
            self.schema,
            PartLimits.of(job.parts),
            is_packed=job.parts is not None and job.parts.compression is not None,
        )


def _document(job: Job) -> Json:
    # The rows come from Spark: what the source is, no executor needs to know.
    document = document_of(job.model_copy(update={"source": _PLACEHOLDER, "engine": None}))
    if document is None:
        raise JobError(
            "request: it cannot be written as JSON, which the executors need; write it"
            " with plain values"
        )
    return document


def _rendering(task: _PartitionTask) -> Any:
    def render(batches: Batches) -> Batches:
        partition = partition_number()
        yield said(partition, lambda: _rendered(task, partition, batches))

    return render


def _rendered(task: _PartitionTask, partition: int, batches: Batches) -> Json:
    """Write a partition's parts, and say what they are; an empty one has none."""
    job = Job.model_validate(task.document)
    writer = BatchWriter(job, task.schema)
    files: PartFiles | None = None
    done = 0
    try:
        for batch in in_utc(batches):
            for piece in sliced(batch):
                files = files or task.files(job, partition)
                try:
                    write_batch(writer.lines_of(piece, partition * PARTITION_ROWS + done), files)
                except ManifestError as error:
                    raise _told(error, job, task.schema, piece, (partition, done)) from None
                done += len(piece)
        if files is not None:
            files.close()
    except BaseException:
        if files is not None:
            files.discard()
        raise
    parts = files.closed if files is not None else []
    manifest = BuiltManifest(tuple(parts), done, 0, 0, writer.max_output_tokens, 0)
    return {"parts": manifest.to_dict()["parts"], "cap": writer.max_output_tokens}


def _told(
    error: ManifestError, job: Job, schema: pa.Schema, piece: pa.RecordBatch, at: tuple[int, int]
) -> ManifestError:
    """Name the row of a batch that cannot become a request by its place and its key."""
    partition, done = at
    for row in range(len(piece)):
        one = piece.slice(row, 1)
        try:
            for _ in BatchWriter(job, schema).lines_of(one, done + row).slices:
                pass
        except ManifestError as found:
            key = shown_key(one, job.key_columns, 0)
            return type(found)(f"{found} (rows of Spark partition {partition}; this one has {key})")
    return error


def _numbered(results: list[Json]) -> list[BuiltPart]:
    """Number the parts of all partitions in their order."""
    told: list[Json] = [part for result in results for part in result["parts"]]
    for index, part in enumerate(told):
        part["index"] = index
    return [BuiltPart(**part) for part in told]


def _empty_part(task: _PartitionTask) -> BuiltPart:
    files = task.files(Job.model_validate(task.document), 0)
    files.close()
    return files.closed[0]


def _check_there(
    fs: fsspec.AbstractFileSystem, folders: tuple[str, str], built: tuple[BuiltPart, ...]
) -> None:
    """See that what the executors wrote is where the driver looks.

    Raises:
        StorageError: It is not: the URL names a disk that each machine has for itself.
    """
    for folder, names in zip(
        folders,
        ({part.manifest_path for part in built}, {part.rows_path for part in built}),
        strict=True,
    ):
        if names - set(_names(fs, folder)):
            raise StorageError(
                f"{folder}: the executors wrote their parts, and this machine does not see them;"
                " runs_url must be a folder that all of them share, such as an object store"
            )


def _remove_others(
    fs: fsspec.AbstractFileSystem,
    folders: tuple[str, str],
    token: str,
    built: tuple[BuiltPart, ...],
) -> None:
    """Remove what other attempts of this build left; never fails, since litter is harmless."""
    kept = {name for part in built for name in (part.manifest_path, part.rows_path)}
    for folder in folders:
        with suppress(OSError):
            for name in _names(fs, folder):
                if name.startswith(token) and name not in kept:
                    fs.rm_file(f"{folder}/{name}")


def _names(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    fs.invalidate_cache()
    found: list[str] = fs.ls(folder, detail=False)
    return [name.rstrip("/").rpartition("/")[2] for name in found]
