"""The landing of a run: part by part, row by row, counted before it is committed.

Memory is flat: one batch of rows, one piece of the artifact, one row group of the sink.

Kill points: ``landing.before_quarantine``, ``landing.after_quarantine``, and those of the sink:
``landing.before_write``, ``landing.mid_write``, ``landing.before_commit``,
``landing.mid_commit``, ``landing.after_commit``.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import fsspec
import pyarrow as pa

from batchrouter.errors import LandingError, StorageError
from batchrouter.landing.judged import JobToLand, JudgedRows
from batchrouter.landing.outputs import PLAIN_OUTPUT
from batchrouter.landing.rejects import NoRejects, Rejects
from batchrouter.landing.report import LandingIdentity, LandingReport, PartToLand
from batchrouter.landing.sinks import Sink
from batchrouter.landing.tally import Tally
from batchrouter.manifest.process import prepare_process

__all__ = ["LandingIdentity", "LandingReport", "PartToLand", "check_landing", "land_parts"]


def land_parts(
    job: JobToLand,
    *,
    fs: fsspec.AbstractFileSystem,
    parts: Sequence[PartToLand],
    sink: Sink,
    identity: LandingIdentity,
    rejects_dir: str,
    token: str,
    resent: Sequence[Sequence[PartToLand]] = (),
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
        resent: The parts of each retry round, in order: rows of `parts` that were sent again.
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
    rows = rows_to_land(job, fs, [parts, *resent], sink, identity)
    sink.check(rows.schema, identity)
    tally = Tally()
    ends = PartEnds(fs, f"{rejects_dir.rstrip('/')}/{token}", tally)
    batches = counted(rows, ends, tally, on_progress)
    commit = sink.write(_own_errors(batches), rows.schema, identity)
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
    rows = rows_to_land(job, fs, [parts], sink, identity)
    sink.check(rows.schema, identity)
    return rows.schema


def rows_to_land(
    job: JobToLand,
    fs: fsspec.AbstractFileSystem,
    rounds: Sequence[Sequence[PartToLand]],
    sink: Sink,
    identity: LandingIdentity,
) -> JudgedRows:
    """Open the rows of a run; vectors that no artifact has are as large as the table's."""

    def size_in_table() -> int | None:
        table = sink.current_schema(identity)
        if table is None or PLAIN_OUTPUT not in table.names:
            return None
        column = table.field(PLAIN_OUTPUT).type
        return column.list_size if isinstance(column, pa.FixedSizeListType) else None

    return JudgedRows(job, fs, rounds, identity.run_key, known_vector_size=size_in_table)


def counted(
    rows: JudgedRows, ends: "PartEnds", tally: Tally, tell: Callable[[int], None] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the table; raises instead of ending when the counts do not add up."""
    with rows.repeated() as repeated:
        for some, batch in rows.batches(ends, repeated):
            tally.add_batch(some, batch)
            yield batch
            if tell:
                tell(tally.rows)
    tally.reconcile(rows.row_count)


class PartEnds:
    """Opens the quarantine of each part, and has its rows counted at the end.

    Args:
        fs: The filesystem of the run folder.
        begin: How the quarantines' paths begin.
        tally: Where parts and rejects are counted.
        keeps_resent: False where another process has the quarantine of what was sent again.
    """

    def __init__(
        self, fs: fsspec.AbstractFileSystem, begin: str, tally: Tally, *, keeps_resent: bool = True
    ) -> None:
        self._fs = fs
        self._begin = begin
        self._tally = tally
        self._keeps_resent = keeps_resent

    def rejects_of(self, resend_round: int, part: PartToLand) -> Rejects:
        """Open the quarantine of a part's lines in a round."""
        if resend_round and not self._keeps_resent:
            return NoRejects()
        of_round = f"-round-{resend_round}" if resend_round else ""
        return Rejects(self._fs, f"{self._begin}{of_round}-part-{part.index:05d}.jsonl")

    def end_part(self, resend_round: int, part: PartToLand, rejects: Rejects) -> None:
        """Count a part and its quarantine."""
        if not resend_round:
            self._tally.end_part(part)
        if not resend_round or self._keeps_resent:
            self._tally.add_rejects(rejects)


def _own_errors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Tell a failure to read the run folder from the sink's failures to write."""
    try:
        yield from batches
    except OSError as error:
        raise StorageError(f"the run folder cannot be read or written: {error}") from error
    except pa.ArrowException as error:
        raise LandingError(f"the run's rows cannot be read: {error}") from error
