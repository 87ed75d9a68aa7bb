"""An executor that dies while it writes: one copy of everything is left."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.spark import build_manifest
from on_spark.conftest import started
from on_spark.tables import (
    built_here,
    files_in,
    job_of,
    lines_of,
    snapshot_of,
    tickets,
)

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(1500)]
ROWS = 6_000
PARTITIONS = 6


@pytest.fixture(scope="module")
def speculating(spark_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster that starts a task again when it takes much longer than the others."""
    from pyspark import cloudpickle

    # The executors cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    session = started(
        tmp_path_factory.mktemp("speculating"),
        **{
            "spark.speculation": "true",
            "spark.speculation.interval": "100ms",
            "spark.speculation.multiplier": "1.5",
            "spark.speculation.quantile": "0.5",
            "spark.speculation.minTaskRuntime": "500ms",
        },
    )
    yield session
    session.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.parquet"
    pq.write_table(tickets(ROWS), path)
    return path


def disturbed(frame: Any, notes: Path, disturb: Any) -> Any:
    """The same rows; the first attempt at partition 1 is disturbed half way through."""

    def through(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        note = notes / f"{context.partitionId()}-{context.attemptNumber()}-{os.getpid()}"
        note.write_text("begun")
        for batch in batches:
            half = len(batch) // 2
            yield batch.slice(0, half)
            if context.partitionId() == 1 and context.attemptNumber() == 0:
                disturb()
            yield batch.slice(half)

    return frame.mapInArrow(through, frame.schema)


def executor_of(pid: int) -> int:
    """The JVM above a Python worker: its parent's parent, or its parent without a daemon."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if b"CoarseGrainedExecutorBackend" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no executor above this process")


def kill_own_executor() -> None:
    # What came through before is in the files of this attempt by then, or never will be.
    time.sleep(1)
    os.kill(executor_of(os.getpid()), signal.SIGKILL)


def check_whole(frame: Any, source: Path, tmp_path: Path) -> None:
    job = job_of(str(source))
    here = built_here(job, tmp_path / "here")

    there = build_manifest(frame, job, str(tmp_path / "there"))

    assert lines_of(tmp_path / "there", there) == lines_of(tmp_path / "here", here)
    assert snapshot_of(tmp_path / "there", there) == snapshot_of(tmp_path / "here", here)
    assert len(there.parts) == PARTITIONS
    assert files_in(tmp_path / "there" / "manifest") == {p.manifest_path for p in there.parts}
    assert files_in(tmp_path / "there" / "rows") == {part.rows_path for part in there.parts}


def test_an_executor_that_is_killed_in_mid_build_leaves_one_copy(
    speculating: Any, source: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    frame = speculating.read.parquet(str(source)).repartition(PARTITIONS)

    check_whole(disturbed(frame, notes, kill_own_executor), source, tmp_path)

    assert len([name for name in files_in(notes) if name.startswith("1-")]) >= 2
