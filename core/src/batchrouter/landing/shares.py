"""A landing shared among processes: each judges one row group of a snapshot and its lines.

As long as the artifact is in manifest order, the lines of a row group stand between two offsets
that can be counted. Each worker compares every id all the same, and says so when one is not the
next row's: from that row group on, the run's own process goes on by itself. So the table is that
of a landing in one process.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchrouter.landing.answers import InOrderAnswers, OutOfOrderError
from batchrouter.landing.judging import Judge
from batchrouter.landing.lines import CHUNK_BYTES
from batchrouter.landing.outputs import open_reader
from batchrouter.landing.rejects import Rejects
from batchrouter.landing.report import PartToLand
from batchrouter.landing.snapshot import Snapshot
from batchrouter.landing.table import landed_schema
from batchrouter.manifest.storing import storing
from batchrouter.manifest.workers import Json, Work, Workers, process_count

LEAST_ROWS = 50_000
"""A smaller part is landed sooner than workers have started."""

_ROW = "_row"


@dataclass(frozen=True, slots=True)
class ShareOfPart:
    """A row group of a part's snapshot, and where its lines stand if none is missing."""

    group: int
    from_byte: int
    to_byte: int
    rows_done: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a worker needs to know of a request; it stands for the request."""

    kind: str
    schema: dict[str, Any] | None

    def output_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer."""
        return self.schema


def shares_of(
    fs: fsspec.AbstractFileSystem, part: PartToLand, snapshot: Snapshot
) -> list[ShareOfPart]:
    """Cut a part at its snapshot's row groups; empty if it is not worth it or not in order.

    Only a run folder on a local disk is shared, and no part whose rows take answers of others.
    """
    if part.artifact_path is None or not isinstance(fs, LocalFileSystem):
        return []
    if process_count() == 1 or part.row_count < LEAST_ROWS or snapshot.repeated_count:
        return []
    sent = snapshot.sent_by_group()
    firsts = np.concatenate(([0], np.cumsum(sent)))
    with cast("IO[bytes]", fs.open(part.artifact_path, "rb")) as file:
        starts = _line_starts(file, firsts.tolist())
    if len(sent) < 2 or starts is None:  # noqa: PLR2004 - one has nobody to share with
        return []
    return [
        ShareOfPart(group, starts[group], starts[group + 1], int(firsts[group]))
        for group in range(len(sent))
    ]


def _line_starts(file: IO[bytes], numbers: Sequence[int]) -> list[int] | None:
    """Give the offsets of lines, the last one being the end; None if there are fewer or more."""
    starts = [0] * numbers.count(0)
    lines = at_byte = 0
    is_whole = True
    chunk = bytearray(CHUNK_BYTES)
    while size := cast("Any", file).readinto(chunk):
        is_newline = np.frombuffer(chunk, np.uint8, size) == ord("\n")
        count = int(np.count_nonzero(is_newline))
        while len(starts) < len(numbers) and numbers[len(starts)] <= lines + count:
            # Looked for in few chunks only: it takes ten times as long as to count them.
            newline = np.flatnonzero(is_newline)[numbers[len(starts)] - lines - 1]
            starts.append(at_byte + int(newline) + 1)
        lines += count
        at_byte += size
        is_whole = bool(is_newline[-1])
    if not is_whole:  # the last line lacks its newline
        lines += 1
        starts += [at_byte] * (len(numbers) - len(starts))
    return starts if len(starts) == len(numbers) and numbers[-1] == lines else None


class SharedJudging:
    """The rows of one part, judged by workers.

    Args:
        asked: The job's request.
        operation: The job's operation.
        vector_size: How many numbers a vector has.
        run_key: The run's key.
        part: The part.
        snapshot: Its snapshot.
        shares: What `shares_of` gave; not empty.
    """

    def __init__(
        self,
        asked: Asked,
        *,
        operation: str | None,
        vector_size: int | None,
        batch_rows: int,
        run_key: str,
        part: PartToLand,
        snapshot: Snapshot,
        shares: Sequence[ShareOfPart],
    ) -> None:
        self._setup = {
            "asked": asdict(asked),
            "operation": operation,
            "vector_size": vector_size,
            "batch_rows": batch_rows,
            "run_key": run_key,
            "part": asdict(part),
            "carried": [field.name for field in snapshot.carried],
        }
        self._shares = shares
        self.done = 0
        """How many shares were in order, and are done."""

    def batches(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield `_row` and the landed rows, until the end or the first share out of order.

        Raises:
            StorageError: The temporary folder takes no more.
            WorkerDiedError: A process died.
        """
        with storing(tempfile.gettempdir()):
            folder = tempfile.TemporaryDirectory(prefix="batchrouter-landing-")
        units = [asdict(share) for share in self._shares]
        setup = {**self._setup, "folder": folder.name}
        count = min(process_count(), len(units))
        with folder, Workers("batchrouter.landing.shares:share_judge", setup, count) as workers:
            for share, said in zip(self._shares, workers.results(units), strict=True):
                if not said["is_in_order"]:
                    return
                yield from _staged(Path(folder.name) / str(share.group))
                self.done += 1


def _staged(path: Path) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as stream:
        path.unlink()
        for batch in stream:
            names = batch.schema.names
            yield batch.select([_ROW]), batch.select(names[:-1])


def share_judge(setup: Mapping[str, Any]) -> Work:
    """Open a part in a worker, and give the function that judges a share of it."""
    fs = fsspec.filesystem("file")
    told: dict[str, Any] = setup["part"]
    error = told["batch_error"]
    told["batch_error"] = error and tuple(error)
    part = PartToLand(**told)
    snapshot = Snapshot(fs, part.rows_path, setup["carried"])
    reader = open_reader(
        Asked(**setup["asked"]), operation=setup["operation"], vector_size=setup["vector_size"]
    )
    schema = landed_schema(snapshot.carried, reader)
    judge = Judge(schema, reader, setup["run_key"])
    staged = schema.append(pa.field(_ROW, pa.int64()))
    rejects = Rejects(fs, "")  # takes nothing: a line that would go there is out of order

    def judged(unit: Json) -> Json:
        share = ShareOfPart(**unit)
        path = Path(setup["folder"]) / str(share.group)
        rows = snapshot.batches(setup["batch_rows"], groups=[share.group])
        with (
            storing(str(path)),
            InOrderAnswers(
                fs,
                part.artifact_path,
                snapshot,
                rejects,
                from_byte=share.from_byte,
                to_byte=share.to_byte,
                read=judge.read_line,
            ) as answers,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, staged) as out,
        ):
            try:
                for some, batch in judge.batches(part, rows, answers, iter(())):
                    columns = [*batch.columns, some.column(_ROW)]
                    out.write_batch(pa.RecordBatch.from_arrays(columns, schema=staged))
                answers.finish()
            except OutOfOrderError:
                return {"is_in_order": False}
        return {"is_in_order": True}

    return judged
