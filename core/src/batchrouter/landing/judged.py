"""The rows of a run with what became of each, over all its rounds, in source order.

Round 0 has every row; a later one only those that were sent again, and what it answered stands in
their place.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import IO, Protocol, cast

import fsspec
import numpy as np
import pyarrow as pa

from batchrouter.errors import JobError, LandingError, StorageError
from batchrouter.landing.answers import Answers
from batchrouter.landing.bodies import UnusableError, vector_of
from batchrouter.landing.envelope import UnreadableLineError, read_line
from batchrouter.landing.judging import Judge
from batchrouter.landing.lines import CHUNK_BYTES, read_lines
from batchrouter.landing.outputs import RequestToLand, UnreadOutput, open_reader
from batchrouter.landing.rejects import Rejects
from batchrouter.landing.repeats import Repeated, repeated_answers
from batchrouter.landing.replacing import Judged, replaced
from batchrouter.landing.report import PartToLand
from batchrouter.landing.shares import Asked, SharedJudging, shares_of
from batchrouter.landing.snapshot import Snapshot
from batchrouter.landing.table import landed_schema

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


class PartListener(Protocol):
    """Takes what is no row: the lines that land nowhere, and the ends of parts."""

    def rejects_of(self, resend_round: int, part: PartToLand) -> Rejects:
        """Open where a part's lines go that are nobody's answer."""
        ...

    def end_part(self, resend_round: int, part: PartToLand, rejects: Rejects) -> None:
        """Close a part: all of its rows were yielded."""
        ...


class JudgedRows:
    """The rows of a run; opening them reads only what tells the columns.

    Args:
        job: Says which columns there are.
        fs: The filesystem of the run folder, which all paths are on.
        rounds: The parts of each round, that of all rows first.
        run_key: The run's key.
        known_vector_size: Asked for the size of vectors if no artifact tells.
        vector_size: The size of vectors where it is known, so that no artifact is asked.
        later_within: The first and the last `_row` that count of later rounds; None for all.
        reads_output: False leaves the answers unread: a line without an error is a success, and
            the rows have no columns of the output.

    Raises:
        LandingError: A snapshot is not the promised one.
        JobError: The output schema gives no columns.
        StorageError: The run folder cannot be read.
    """

    def __init__(
        self,
        job: JobToLand,
        fs: fsspec.AbstractFileSystem,
        rounds: Sequence[Sequence[PartToLand]],
        run_key: str,
        *,
        known_vector_size: Callable[[], int | None] = lambda: None,
        vector_size: int | None = None,
        later_within: tuple[int, int] | None = None,
        reads_output: bool = True,
    ) -> None:
        self._fs = fs
        self._rounds = [sorted(parts, key=lambda part: part.index) for parts in rounds]
        self._run_key = run_key
        carried = tuple(dict.fromkeys((*job.key_columns, *job.keep)))
        self.vector_size = vector_size
        """How many numbers a vector has; None where there are none, or none is known."""
        self._later_within = later_within
        try:
            self._snapshots = [
                [_snapshot(fs, part, carried) for part in parts] for parts in self._rounds
            ]
            if reads_output and _has_vectors(job) and vector_size is None:
                all_parts = [part for parts in self._rounds for part in parts]
                self.vector_size = _first_vector_size(fs, all_parts) or known_vector_size()
        except OSError as error:
            raise StorageError(f"the run folder cannot be read: {error}") from error
        self._check_same_columns()
        self._asked = Asked(job.request.kind, job.request.output_schema())
        self._operation = job.operation
        self._is_shared = reads_output
        self._batch_rows = _VECTOR_BATCH_ROWS if _has_vectors(job) else _BATCH_ROWS
        try:
            reader = (
                open_reader(job.request, operation=job.operation, vector_size=self.vector_size)
                if reads_output
                else UnreadOutput()
            )
            self.schema = landed_schema(self._snapshots[0][0].carried, reader)
        except ValueError as error:
            raise JobError(f"request.output: {error}") from error
        self._judge = Judge(self.schema, reader, run_key)

    @property
    def row_count(self) -> int:
        """Rows of the table."""
        return sum(part.row_count for part in self._rounds[0])

    @property
    def snapshot_schema(self) -> pa.Schema:
        """The columns of the row snapshots, as far as a landing needs them."""
        return self._snapshots[0][0].schema

    def _check_same_columns(self) -> None:
        if not self._rounds or not self._rounds[0]:
            raise LandingError("a run has at least one part; nothing was landed")
        first = self._snapshots[0][0]
        for parts, snapshots in zip(self._rounds, self._snapshots, strict=True):
            for part, snapshot in zip(parts, snapshots, strict=True):
                if snapshot.carried != first.carried:
                    raise LandingError(
                        f"the row snapshot of part {part.index} has other columns than that of part"
                        f" {self._rounds[0][0].index}; build the run again"
                    )

    def repeated(self) -> "closing[Generator[Repeated, None, None]]":
        """Open the answers of rows that repeat another one's request."""
        parts = [part for parts in self._rounds for part in parts]
        snapshots = [each for some in self._snapshots for each in some]
        return closing(repeated_answers(self._fs, parts, snapshots))

    def batches(self, listener: PartListener, repeated: Iterator[Repeated]) -> Judged:
        """Yield rows of the snapshots of round 0, and the landed rows beside them.

        Raises:
            LandingError: A later round has rows that are none of the run's.
            StorageError: The temporary folder takes no more.
        """
        with ExitStack() as stack:
            judged = stack.enter_context(closing(self._round(0, listener, repeated)))
            for resend_round in range(1, len(self._rounds)):
                later = stack.enter_context(closing(self._later(resend_round, listener)))
                judged = replaced(judged, later)
            yield from judged

    def _later(self, resend_round: int, listener: PartListener) -> Judged:
        """Yield the rows of a later round, as far as they are of the rows that are asked for."""
        with closing(self._round(resend_round, listener, iter(()))) as judged:
            if self._later_within is None:
                yield from judged
                return
            first, last = self._later_within
            for some, batch in judged:
                places = some.column("_row").to_numpy()
                begin, end = np.searchsorted(places, (first, last + 1)).tolist()
                if begin < end:
                    yield some.slice(begin, end - begin), batch.slice(begin, end - begin)

    def _round(
        self, resend_round: int, listener: PartListener, repeated: Iterator[Repeated]
    ) -> Judged:
        parts, snapshots = self._rounds[resend_round], self._snapshots[resend_round]
        for part, snapshot in zip(parts, snapshots, strict=True):
            with listener.rejects_of(resend_round, part) as rejects:
                # What was sent again is few: workers would start later than it is done.
                is_shared = self._is_shared and resend_round == 0
                yield from self._judged(part, snapshot, rejects, repeated, is_shared=is_shared)
            listener.end_part(resend_round, part, rejects)

    def _judged(
        self,
        part: PartToLand,
        snapshot: Snapshot,
        rejects: Rejects,
        repeated: Iterator[Repeated],
        *,
        is_shared: bool,
    ) -> Judged:
        """Yield rows of the snapshot and the landed rows, in batches of bounded size."""
        from_byte = rows_done = 0
        groups: Sequence[int] | None = None
        shares = shares_of(self._fs, part, snapshot) if is_shared else []
        if shares:
            shared = SharedJudging(
                self._asked,
                operation=self._operation,
                vector_size=self.vector_size,
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
            read=self._judge.read_line,
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


def _first_vector_size(fs: fsspec.AbstractFileSystem, parts: Sequence[PartToLand]) -> int | None:
    """Find the size of the first vector that came."""
    for part in parts:
        size = None if part.artifact_path is None else _vector_size_in(fs, part.artifact_path)
        if size is not None:
            return size
    return None


def _vector_size_in(fs: fsspec.AbstractFileSystem, path: str) -> int | None:
    with cast("IO[bytes]", fs.open(path, "rb", block_size=CHUNK_BYTES)) as file:
        for _, raw in read_lines(file):
            try:
                line = read_line(raw)
                if line.failure is None:
                    return len(vector_of(line.output))
            except (UnreadableLineError, UnusableError):
                continue
    return None
