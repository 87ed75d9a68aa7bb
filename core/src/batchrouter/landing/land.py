"""The landing of a run: part by part, row by row, counted before it is committed.

Memory is flat: one batch of rows, one piece of the artifact, one row group of the sink.

Kill points: ``landing.before_quarantine``, ``landing.after_quarantine``, and those of the sink:
``landing.before_write``, ``landing.mid_write``, ``landing.before_commit``,
``landing.after_commit``.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import IO, Protocol, cast

import fsspec
import pyarrow as pa

from batchrouter.errors import JobError, LandingError, StorageError
from batchrouter.landing.answers import Answers
from batchrouter.landing.bodies import UnusableError, vector_of
from batchrouter.landing.envelope import UnreadableLineError, read_line
from batchrouter.landing.judging import Judge
from batchrouter.landing.lines import CHUNK_BYTES, read_lines
from batchrouter.landing.outputs import PLAIN_OUTPUT, RequestToLand, open_reader
from batchrouter.landing.rejects import Rejects
from batchrouter.landing.repeats import Repeated, repeated_answers
from batchrouter.landing.report import LandingIdentity, LandingReport, PartToLand
from batchrouter.landing.shares import Asked, SharedJudging, shares_of
from batchrouter.landing.sinks import Sink
from batchrouter.landing.snapshot import Snapshot
from batchrouter.landing.table import landed_schema
from batchrouter.landing.tally import Tally
from batchrouter.manifest.process import prepare_process

__all__ = ["LandingIdentity", "LandingReport", "PartToLand", "check_landing", "land_parts"]

_BATCH_ROWS = 2048
_VECTOR_BATCH_ROWS = 256
"""A vector of 1,536 numbers is 30 kB of JSON, and some 50 kB while it is Python floats."""


class JobToLand(Protocol):
    """What landing needs to know of a job."""

    @property
    def request(self) -> RequestToLand:
        """The request, which says what an answer looks like."""
        ...

    @property
    def operation(self) -> str | None:
        """`responses`, `embeddings`, or None for a workflow."""
        ...

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The key's columns, first in the table."""
        ...

    @property
    def keep(self) -> Sequence[str]:
        """Source columns that follow the key."""
        ...


def land_parts(
    job: JobToLand,
    *,
    fs: fsspec.AbstractFileSystem,
    parts: Sequence[PartToLand],
    sink: Sink,
    identity: LandingIdentity,
    rejects_dir: str,
    token: str,
    on_progress: Callable[[int], None] | None = None,
) -> LandingReport:
    """Land all parts of a run as one commit; landing again replaces it by the same rows.

    Args:
        job: Says which columns there are.
        fs: The filesystem of the run folder, which all paths are on.
        parts: Every part of the run.
        sink: Where the rows go.
        identity: Whose rows they are.
        rejects_dir: An existing folder; the lines that land nowhere go to
            ``<token>-part-00000.jsonl`` in it, one file a part that has any.
        token: This attempt's own name.
        on_progress: Told the rows done so far.

    Returns:
        The counts. The table holds one row for every row of the snapshots, in source order:
        key, kept columns, output, and the columns of `table.landed_schema`.

    Raises:
        LandingError: Rows and statuses do not add up, or a snapshot is not the promised one.
        SinkError: The table refuses the rows, or there is no room.
        JobError: The output schema gives no columns.
        StorageError: The run folder cannot be read or written.
        WorkerDiedError: One of the processes that a large part is shared among died.

        After each of them the table is as it was.
    """
    started_s = time.monotonic()
    prepare_process()
    landing = _Landing(job, fs, parts, sink, identity)
    sink.check(landing.schema, identity)
    tally = Tally()
    batches = landing.batches(rejects_dir, token, tally, on_progress or _tell_no_one)
    commit = sink.write(_own_errors(batches), landing.schema, identity)
    return tally.report(commit, duration_s=time.monotonic() - started_s)


def check_landing(
    job: JobToLand,
    *,
    fs: fsspec.AbstractFileSystem,
    parts: Sequence[PartToLand],
    sink: Sink,
    identity: LandingIdentity,
) -> pa.Schema:
    """Find out before anything is bought whether the table will take the rows.

    Args:
        job: As for `land_parts`.
        fs: The filesystem of the run folder.
        parts: The built parts; their artifacts are not needed.
        sink: Where the rows will go.
        identity: Whose rows they will be.

    Returns:
        The table's columns. The size of vectors is that of the table, if there is one: what
        the model answers is not known yet.

    Raises:
        SinkError: The table has other columns, or cannot be written.
        JobError: The output schema gives no columns.
        LandingError: A snapshot is not the promised one.
        StorageError: The run folder cannot be read.
    """
    prepare_process()
    landing = _Landing(job, fs, parts, sink, identity)
    sink.check(landing.schema, identity)
    return landing.schema


class _Landing:
    def __init__(
        self,
        job: JobToLand,
        fs: fsspec.AbstractFileSystem,
        parts: Sequence[PartToLand],
        sink: Sink,
        identity: LandingIdentity,
    ) -> None:
        self._fs = fs
        self._parts = sorted(parts, key=lambda part: part.index)
        self._run_key = identity.run_key
        carried = tuple(dict.fromkeys((*job.key_columns, *job.keep)))
        try:
            self._snapshots = [_snapshot(fs, part, carried) for part in self._parts]
            size = _vector_size(fs, self._parts, sink, identity) if _has_vectors(job) else None
            self._vector_size = size
        except OSError as error:
            raise StorageError(f"the run folder cannot be read: {error}") from error
        self._check_same_columns()
        try:
            reader = open_reader(job.request, operation=job.operation, vector_size=size)
            self.schema = landed_schema(self._snapshots[0].carried, reader)
        except ValueError as error:
            raise JobError(f"request.output: {error}") from error
        self._asked = Asked(job.request.kind, job.request.output_schema())
        self._operation = job.operation
        self._judge = Judge(self.schema, reader, identity.run_key)
        self._batch_rows = _VECTOR_BATCH_ROWS if _has_vectors(job) else _BATCH_ROWS

    def _check_same_columns(self) -> None:
        if not self._snapshots:
            raise LandingError("a run has at least one part; nothing was landed")
        for part, snapshot in zip(self._parts, self._snapshots, strict=True):
            if snapshot.carried != self._snapshots[0].carried:
                raise LandingError(
                    f"the row snapshot of part {part.index} has other columns than that of part"
                    f" {self._parts[0].index}; build the run again"
                )

    def batches(
        self, rejects_dir: str, token: str, tally: Tally, tell: Callable[[int], None]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the table; raises instead of ending when the counts do not add up."""
        with closing(repeated_answers(self._fs, self._parts, self._snapshots)) as repeated:
            for part, snapshot in zip(self._parts, self._snapshots, strict=True):
                path = f"{rejects_dir.rstrip('/')}/{token}-part-{part.index:05d}.jsonl"
                with Rejects(self._fs, path) as rejects:
                    for rows, batch in self._judged(part, snapshot, rejects, repeated):
                        tally.add_batch(rows, batch)
                        yield batch
                        tell(tally.rows)
                tally.end_part(part, rejects)
        tally.reconcile(sum(part.row_count for part in self._parts))

    def _judged(
        self,
        part: PartToLand,
        snapshot: Snapshot,
        rejects: Rejects,
        repeated: Iterator[Repeated],
    ) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield rows of the snapshot and the landed rows, in batches of bounded size."""
        from_byte = rows_done = 0
        groups: Sequence[int] | None = None
        shares = shares_of(self._fs, part, snapshot)
        if shares:
            shared = SharedJudging(
                self._asked,
                operation=self._operation,
                vector_size=self._vector_size,
                batch_rows=self._batch_rows,
                run_key=self._run_key,
                part=part,
                snapshot=snapshot,
                shares=shares,
            )
            yield from shared.batches()
            left = shares[shared.done :]
            if not left:
                return
            from_byte, rows_done = left[0].from_byte, left[0].rows_done
            groups = [share.group for share in left]
        with Answers(
            self._fs,
            part.artifact_path,
            snapshot,
            rejects,
            from_byte=from_byte,
            rows_done=rows_done,
        ) as answers:
            rows = snapshot.batches(self._batch_rows, groups=groups)
            yield from self._judge.batches(part, rows, answers, repeated)
            answers.finish()


def _snapshot(
    fs: fsspec.AbstractFileSystem, part: PartToLand, carried: tuple[str, ...]
) -> Snapshot:
    try:
        snapshot = Snapshot(fs, part.rows_path, carried)
    except pa.ArrowInvalid as error:
        raise LandingError(f"the row snapshot {part.rows_path} is damaged: {error}") from error
    if snapshot.row_count != part.row_count:
        raise LandingError(
            f"the row snapshot {part.rows_path} has {snapshot.row_count} rows, and the run built"
            f" {part.row_count}; nothing was committed"
        )
    return snapshot


def _has_vectors(job: JobToLand) -> bool:
    return job.operation == "embeddings" or job.request.kind == "embedding"


def _vector_size(
    fs: fsspec.AbstractFileSystem,
    parts: Sequence[PartToLand],
    sink: Sink,
    identity: LandingIdentity,
) -> int | None:
    """Find the size of vectors: the first that came, else that of the table, else None."""
    for part in parts:
        if part.artifact_path is not None:
            size = _first_vector_size(fs, part.artifact_path)
            if size is not None:
                return size
    table = sink.current_schema(identity)
    if table is None or PLAIN_OUTPUT not in table.names:
        return None
    column = table.field(PLAIN_OUTPUT).type
    return column.list_size if isinstance(column, pa.FixedSizeListType) else None


def _first_vector_size(fs: fsspec.AbstractFileSystem, path: str) -> int | None:
    with cast("IO[bytes]", fs.open(path, "rb", block_size=CHUNK_BYTES)) as file:
        for _, raw in read_lines(file):
            try:
                line = read_line(raw)
                if line.failure is None:
                    return len(vector_of(line.output))
            except (UnreadableLineError, UnusableError):
                continue
    return None


def _own_errors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Tell a failure to read the run folder from the sink's failures to write."""
    try:
        yield from batches
    except OSError as error:
        raise StorageError(f"the run folder cannot be read or written: {error}") from error
    except pa.ArrowException as error:
        raise LandingError(f"the run's rows cannot be read: {error}") from error


def _tell_no_one(rows: int) -> None:
    del rows
