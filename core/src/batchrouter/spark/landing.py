"""The landing on Spark: each task judges the rows of one part, and writes them where they go.

A part's artifact answers that part alone, so its lines are joined with its snapshot where both
are read, in one task, and nothing is shuffled. A table that is a list of files (Delta, Iceberg)
gets the tasks' files, which one commit names; the driver reads no row. For any other the tasks
write beside the run, and the driver puts the rows into the table in the order of the parts, as one
commit, too. The counts are those of a landing on one machine.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, Protocol, TypeVar, cast

import fsspec
import pyarrow as pa

from batchrouter.errors import LandingError, StorageError
from batchrouter.landing.judged import JobToLand, JudgedRows
from batchrouter.landing.land import PartEnds, counted, rows_to_land
from batchrouter.landing.report import LandingIdentity, LandingReport, PartToLand
from batchrouter.landing.shares import Asked
from batchrouter.landing.sinks import Sink
from batchrouter.landing.sinks.files import write_file
from batchrouter.landing.sinks.placed import Intake, PlacedFile, TakesFiles
from batchrouter.landing.snapshot import Snapshot
from batchrouter.landing.tally import Tally
from batchrouter.manifest.arrow import pq
from batchrouter.manifest.storing import storing
from batchrouter.spark.session import Session, using
from batchrouter.spark.tasks import Json, attempt_name, each

_BATCH_ROWS = 16 * 1024

_Receipt_co = TypeVar("_Receipt_co", covariant=True)


class LandableRun(Protocol[_Receipt_co]):
    """A run whose batches have ended."""

    def land(self, *, again: bool = False) -> _Receipt_co:
        """Collect and land."""
        ...


def land(spark: Session, run: LandableRun[_Receipt_co], *, again: bool = False) -> _Receipt_co:
    """Land a run on a Spark session, whatever its job says of an engine.

    The parts are judged on the executors, and their rows go into the job's sink as one commit;
    landing again replaces it by the same rows.

    Args:
        spark: A session, classic or of Spark Connect; executors and driver share the run folder.
        run: An open `Run`, built on Spark or on one machine.
        again: Land though it was landed.

    Returns:
        The receipt, as of `Run.land`.

    Raises:
        WaitTimeoutError: A batch is still open.
        LandingError: Rows and results do not add up, or the table refuses; it is as it was.
        WorkerDiedError: A task failed as often as Spark tries it; run it again.

    Example:
        >>> land(spark, Run.open(job, run_key="2026-11-22")).rows["succeeded"]  # doctest: +SKIP
        10000000
    """
    with using(spark):
        return run.land(again=again)


def landed_on_spark(
    job: JobToLand,
    *,
    spark: Session,
    fs: fsspec.AbstractFileSystem,
    parts: Sequence[PartToLand],
    sink: Sink,
    identity: LandingIdentity,
    rejects_dir: str,
    landed_dir: str,
    token: str,
    resent: Sequence[Sequence[PartToLand]] = (),
    on_progress: Callable[[int], None] | None = None,
) -> LandingReport:
    """Land all parts of a run as one commit; as `landing.land.land_parts`.

    Args:
        job: Says which columns there are.
        spark: Where the rows are judged.
        fs: The filesystem of the run folder; sent to the executors.
        parts: Every part of the run.
        sink: Where the rows go.
        identity: Whose rows they are.
        rejects_dir: An existing folder; takes the lines that land nowhere.
        landed_dir: An existing folder; takes the judged rows until they are committed.
        token: This attempt's own name.
        resent: The parts of each retry round, in order.
        on_progress: Told the rows done so far.

    Raises:
        LandingError: Rows and statuses do not add up, or rows take the answers of others.
        BatchrouterError: As `land_parts`; in each case the table is as it was.
    """
    started_s = time.monotonic()
    rows = rows_to_land(job, fs, [parts, *resent], sink, identity)
    sink.check(rows.schema, identity)
    ordered = sorted(parts, key=lambda part: part.index)
    intake = sink.intake(rows.schema, identity) if isinstance(sink, TakesFiles) else None
    task = _PartTask(
        job=_LandedJob.of(job),
        fs=fs,
        run_key=identity.run_key,
        vector_size=rows.vector_size,
        rejects_dir=rejects_dir,
        landed_dir=landed_dir,
        token=token,
        resent=[[asdict(part) for part in some] for some in resent],
        intake=intake,
    )
    units = [{"part": asdict(part), "is_first": part is ordered[0]} for part in ordered]
    tally = Tally()
    try:
        results = each(spark, units, task.land)
        placed = [PlacedFile(**result["placed"]) for result in results if "placed" in result]
        for result in results:
            tally.add_told(result["tally"])
        if intake is not None and isinstance(sink, TakesFiles):
            _reconcile(tally, rows, intake, placed)
            commit = sink.commit_files(placed, intake, rows.schema, identity)
            if on_progress:
                on_progress(rows.row_count)
        else:
            tally.reconcile(rows.row_count)
            paths = [f"{landed_dir}/{result['name']}" for result in results]
            batches = _read_again(fs, paths, rows, on_progress)
            commit = sink.write(batches, rows.schema, identity)
    finally:
        _remove(fs, landed_dir, token)
    return tally.report(commit, duration_s=time.monotonic() - started_s)


def _reconcile(
    tally: Tally, rows: JudgedRows, intake: Intake, placed: Sequence[PlacedFile]
) -> None:
    """See that every row is in the placed files, or remove them."""
    try:
        tally.reconcile(rows.row_count)
        _check_count(rows.row_count, sum(file.rows for file in placed))
    except LandingError:
        intake.remove(placed)
        raise


def _check_count(built: int, there: int) -> None:
    if there != built:
        raise LandingError(
            f"{built} rows were built and {there} came back from the executors; nothing was"
            " committed"
        )


@dataclass(frozen=True, slots=True)
class _LandedJob:
    """What an executor needs to know of a job; it stands for the job."""

    request: Asked
    operation: str | None
    key_columns: tuple[str, ...]
    keep: tuple[str, ...]

    @classmethod
    def of(cls, job: JobToLand) -> "_LandedJob":
        request = Asked(job.request.kind, job.request.output_schema())
        return cls(request, job.operation, tuple(job.key_columns), tuple(job.keep))


@dataclass(frozen=True, slots=True)
class _PartTask:
    """What each task is given, and what it does."""

    job: _LandedJob
    fs: fsspec.AbstractFileSystem
    run_key: str
    vector_size: int | None
    rejects_dir: str
    landed_dir: str
    token: str
    resent: list[list[Json]]
    intake: Intake | None

    def land(self, unit: Json) -> Json:
        """Judge a part, write its rows, and say how they are called and what they are."""
        part = _part(unit["part"])
        snapshot = Snapshot(self.fs, part.rows_path, (*self.job.key_columns, *self.job.keep))
        if snapshot.repeated_count:
            raise LandingError(
                f"rows of part {part.index} take the answers of others (dedupe), which may be in"
                " any part: land this run on one machine; nothing was committed"
            )
        within = snapshot.first_and_last_row()
        later = self.resent if within else []
        rows = JudgedRows(
            self.job,
            self.fs,
            [[part], *([_part(told) for told in some] for some in later)],
            self.run_key,
            vector_size=self.vector_size,
            later_within=within,
        )
        name = attempt_name(self.token, part.index)
        tally = Tally()
        # What was sent again is in the quarantine of one task alone.
        begin = f"{self.rejects_dir}/{name}"
        ends = PartEnds(self.fs, begin, tally, keeps_resent=unit["is_first"])
        batches = counted(rows, ends, tally)
        if self.intake is not None:
            with storing(self.intake.location):
                placed = self.intake.place(name, batches)
            return {"placed": asdict(placed), "tally": tally.to_dict()}
        path = f"{self.landed_dir}/{name}.parquet"
        with storing(path), self.fs.open(path, "wb") as file:
            write_file(cast("IO[bytes]", file), batches, rows.schema)
        return {"name": f"{name}.parquet", "tally": tally.to_dict()}


def _part(told: Json) -> PartToLand:
    error = told["batch_error"]
    fields: Json = {**told, "batch_error": error and tuple(error)}
    return PartToLand(**fields)


def _read_again(
    fs: fsspec.AbstractFileSystem,
    paths: Sequence[str],
    rows: JudgedRows,
    on_progress: Callable[[int], None] | None,
) -> Iterator[pa.RecordBatch]:
    """Yield what the tasks wrote, in source order; raises instead of ending when rows lack."""
    done = 0
    for path in paths:
        try:
            with fs.open(path, "rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                    columns: list[Any] = batch.columns
                    yield pa.RecordBatch.from_arrays(columns, schema=rows.schema)
                    done += len(batch)
                    if on_progress:
                        on_progress(done)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"{path}: what the executors landed cannot be read here: {error}; the run folder"
                " must be one that they share with this machine"
            ) from error
    _check_count(rows.row_count, done)


def _remove(fs: fsspec.AbstractFileSystem, folder: str, token: str) -> None:
    """Remove the files of this attempt; never fails, since litter is harmless."""
    with suppress(OSError):
        fs.invalidate_cache()
        for path in fs.ls(folder, detail=False):
            if path.rpartition("/")[2].startswith(token):
                fs.rm_file(path)
