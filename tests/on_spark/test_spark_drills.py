"""Executors that die, and real queries: one copy of everything is left."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter import Run
from batchrouter.spark import build_manifest
from batchrouter.testing import RunningRouter, running_router
from on_spark.conftest import started
from on_spark.tables import (
    BANKING77,
    banking77_job,
    built_here,
    files_in,
    job_of,
    landed,
    lines_of,
    snapshot_of,
    tickets,
)

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(1500)]
ROWS = 6_000
PARTITIONS = 6


@pytest.fixture(scope="module")
def cluster(spark_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pyspark import cloudpickle

    # The executors cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    session = started(tmp_path_factory.mktemp("cluster"))
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
    cluster: Any, source: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    frame = cluster.read.parquet(str(source)).repartition(PARTITIONS)

    check_whole(disturbed(frame, notes, kill_own_executor), source, tmp_path)

    assert len([name for name in files_in(notes) if name.startswith("1-")]) >= 2


def test_an_executor_that_is_killed_in_mid_landing_loses_no_row(
    cluster: Any, source: Path, tmp_path: Path
) -> None:
    with running_router(tmp_path / "router") as router:
        frame = cluster.read.parquet(str(source)).repartition(PARTITIONS)
        here = job_of(str(source), sink=str(tmp_path / "here"))
        with opened(here, router, tmp_path, "one") as run:
            expected = run.execute(timeout_s=600)
        with opened(job_of(frame, sink=str(tmp_path / "there")), router, tmp_path, "two") as run:
            run.submit()
            folder = Path(run.folder_url) / "landed"
            killed: list[int] = []
            killer = threading.Thread(target=kill_when_filling, args=(folder, killed), daemon=True)
            killer.start()
            receipt = run.execute(timeout_s=600)
        killer.join(60)

    dropped = ["_run_key"]
    assert len(killed) == 1
    assert receipt.rows == expected.rows
    assert landed(tmp_path / "there").drop_columns(dropped) == landed(
        tmp_path / "here"
    ).drop_columns(dropped)


def kill_when_filling(folder: Path, killed: list[int]) -> None:
    """Kill one executor as soon as a task has begun to write what it landed."""
    until_s = time.monotonic() + 600
    while time.monotonic() < until_s:
        if files_in(folder):
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and is_own_executor(process):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
                    return
        time.sleep(0.01)


def is_own_executor(process: Path) -> bool:
    """An executor of this test's cluster: its JVM stands below this process."""
    try:
        if b"CoarseGrainedExecutorBackend" not in (process / "cmdline").read_bytes():
            return False
        pid = int(process.name)
        while pid > 1 and pid != os.getpid():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return pid == os.getpid()


def opened(job: Any, router: RunningRouter, folder: Path, key: str) -> Run:
    return Run.open(job, run_key=key, settings=router.settings(runs_url=str(folder / "runs")))


@pytest.mark.shared_data
def test_real_queries_are_built_and_landed_as_on_one_machine(cluster: Any, tmp_path: Path) -> None:
    path = str(BANKING77 / "train.parquet")
    frame = cluster.read.parquet(path).repartition(PARTITIONS)
    built = build_manifest(frame, banking77_job(path), str(tmp_path / "built"))
    with running_router(tmp_path / "router") as router:
        here = banking77_job(path, sink=str(tmp_path / "here"))
        with opened(here, router, tmp_path, "one") as run:
            expected = run.execute(timeout_s=600)
        there = banking77_job(path, sink=str(tmp_path / "there"), engine="spark")
        with opened(there, router, tmp_path, "two") as run:
            receipt = run.execute(timeout_s=600)

    assert receipt.rows == expected.rows
    assert receipt.row_count == built.row_count == 10_003
    dropped = ["_run_key"]
    assert landed(tmp_path / "there").drop_columns(dropped) == landed(
        tmp_path / "here"
    ).drop_columns(dropped)
    one = built_here(banking77_job(path), tmp_path / "one")
    assert lines_of(tmp_path / "built", built) == lines_of(tmp_path / "one", one)
