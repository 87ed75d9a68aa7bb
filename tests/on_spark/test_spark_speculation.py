"""A task that Spark runs twice, on a cluster whose two workers stand on hosts of their own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pyspark
import pytest

from on_spark import test_spark_drills as drills
from on_spark.conftest import free_port, started
from on_spark.tables import files_in, tickets

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(900)]

HOSTS = ("127.0.0.2", "127.0.0.3")
"""Spark runs a task again on another host only, and all that `local-cluster` has is one."""

AGAIN_WITHIN_S = 300.0


@pytest.fixture
def master(spark_environment: None, tmp_path: Path) -> Iterator[str]:
    """Spark's own master and two workers, each a process; yields the master's URL."""
    port = free_port()
    url = f"spark://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(
            daemon(tmp_path, "master.Master", "--host", "127.0.0.1", "--port", str(port))
        )
        wait_for_port(port)
        for host in HOSTS:
            own = ["--host", host, "--cores", "1", "--memory", "1g", "--work-dir", str(tmp_path)]
            stack.enter_context(daemon(tmp_path, "worker.Worker", *own, url))
        yield url


@contextmanager
def daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    """Run one of Spark's daemons while the block lasts."""
    program = Path(pyspark.__file__).parent / "bin" / "spark-class"
    command = [str(program), f"org.apache.spark.deploy.{name}", "--webui-port", "0", *arguments]
    with (
        (folder / f"{name}.log").open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.kill()


def wait_for_port(port: int) -> None:
    give_up_at = time.monotonic() + 120
    while time.monotonic() < give_up_at:
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the master does not listen")


@pytest.fixture
def speculating(master: str, tmp_path: Path) -> Iterator[Any]:
    """A session that starts a task again when it takes much longer than the others."""
    from pyspark import cloudpickle

    # The executors cannot import the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cloudpickle.register_pickle_by_value(drills)
    session = started(
        tmp_path,
        master,
        **{
            "spark.executor.memory": "900m",
            "spark.speculation": "true",
            "spark.speculation.interval": "100ms",
            "spark.speculation.multiplier": "1.5",
            "spark.speculation.quantile": "0.5",
            # Above what a Python worker takes to begin, or the first attempt would not have begun.
            "spark.speculation.minTaskRuntime": "20s",
        },
    )
    yield session
    session.stop()


def sleep_until_started_again(notes: Path) -> None:
    """Wait for the second attempt at this partition, so that both write."""
    until_s = time.monotonic() + AGAIN_WITHIN_S
    while time.monotonic() < until_s:
        if any(notes.glob("1-1-*")):
            return
        time.sleep(0.1)


def test_a_task_that_runs_twice_leaves_one_copy(speculating: Any, tmp_path: Path) -> None:
    source, notes = tmp_path / "tickets.parquet", tmp_path / "notes"
    pq.write_table(tickets(drills.ROWS), source)
    notes.mkdir()
    frame = speculating.read.parquet(str(source)).repartition(drills.PARTITIONS)

    slow = drills.disturbed(frame, notes, lambda: sleep_until_started_again(notes))
    drills.check_whole(slow, source, tmp_path)

    assert len([name for name in files_in(notes) if name.startswith("1-")]) == 2
