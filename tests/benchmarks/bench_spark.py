"""How fast a manifest is built and landed on Spark, beside one process on the same rows.

The table is that of `bench_sizes`: short rows, so that the disk holds 20 million of them. It is
built and landed into a Delta table in one process, and on a cluster of two executors on this
machine (`local-cluster[2,1,2048]`), each step in a process tree of its own; the artifacts are made
in between, by neither. The time is that of the step alone, with what the executors import for it;
the start of the JVMs and of the Python workers is left out.

The memory of the driver (its Python and its JVM) and of the executors (JVMs and Python workers) is
their peak, proportional (PSS), sampled each 0.2 s, and more rarely where that would take more than
a twentieth of a core. A JVM grows before it collects: its peak says what it was given more than
what it needs.

Spark reads the file in splits, without a shuffle, and each split becomes a part. Their size
(`spark.sql.files.maxPartitionBytes`) is the file's divided by the number of parts: one for every
500,000 rows, and two at least. A split takes whole row groups (50,000 rows), so a table of one
row group is one part all the same.

Run ``python tests/benchmarks/bench_spark.py [--rows 200000 2000000 20000000] [--plot FILE.svg]`` in
`.venv-spark`; the plot wants ``pip install matplotlib``. All is written in TMPDIR, some 1 kB a row
at the most.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench_sizes import STEPS, Line, build, draw, job_of, land, measured, prepare, to_land

WAYS = ("one process", "Spark, 2 executors")
_PART_ROWS = 500_000
_SAMPLE_S = 0.2
_SAMPLING_SHARE = 0.05
_SINK = "delta:"
_SETTINGS = {
    "spark.master": "local-cluster[2,1,2048]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "4",
    # No task starts before both executors are there.
    "spark.cores.max": "2",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
}

Told = dict[int, dict[tuple[str, str], dict[str, Any]]]
"""What was measured, by rows, and by way and step."""


def started() -> Any:
    """Start a cluster, with a Python worker in each executor."""
    from pyspark.sql import SparkSession

    import batchrouter.spark.landing  # noqa: F401 - here, and not while it is timed

    builder = SparkSession.builder
    for name, value in _SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.range(0, 100, 1, 2).mapInArrow(lambda batches: batches, "id long").count()
    return spark


def build_on_spark(spark: Any, folder: Path) -> int:
    """Build the manifest, a part for each split of the table."""
    import pyarrow.parquet as pq

    from batchrouter.spark import build_manifest

    source = folder / "tickets.parquet"
    parts = max(2, pq.read_metadata(source).num_rows // _PART_ROWS)
    split_bytes = -(-source.stat().st_size // parts)
    spark.conf.set("spark.sql.files.maxPartitionBytes", str(split_bytes))
    built = build_manifest(spark.read.parquet(str(source)), job_of(source), str(folder))
    (folder / "built.json").write_text(json.dumps(built.to_dict()))
    return built.row_count


def land_on_spark(spark: Any, folder: Path) -> int:
    """Land all parts, a task each."""
    from batchrouter.landing.sinks import open_sink
    from batchrouter.spark.landing import landed_on_spark

    landed = folder / "landed"
    landed.mkdir()
    return landed_on_spark(
        job_of(folder / "tickets.parquet"),
        spark=spark,
        sink=open_sink(f"{_SINK}{folder}/table"),
        landed_dir=str(landed),
        **to_land(folder),
    ).rows


def run_step(way: str, step: str, folder: Path) -> None:
    """Take a step here."""
    if way == WAYS[0]:
        prepare()
        take({"build": build, "land": partial(land, kind=_SINK)}[step], folder)
        return
    with started() as spark:
        take(partial({"build": build_on_spark, "land": land_on_spark}[step], spark), folder)


def take(step: Callable[[Path], int], folder: Path) -> None:
    """Take a step that is ready, and print what it took."""
    begun_s = time.perf_counter()
    rows = step(folder)
    print(json.dumps({"rows": rows, "wall_s": time.perf_counter() - begun_s}), flush=True)


class Memory:
    """The peak of a process tree, its executors apart."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self.driver_mb = self.executors_mb = 0.0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        wait_s = _SAMPLE_S
        while not self._ended.wait(wait_s):
            begun_s = time.thread_time()
            driver, executors = _tree_kib(self._pid, is_executor=False)
            self.driver_mb = max(self.driver_mb, driver * 1024 / 1e6)
            self.executors_mb = max(self.executors_mb, executors * 1024 / 1e6)
            # The pages of three JVMs are counted in 70 ms, which the cluster would lack.
            wait_s = max(_SAMPLE_S, (time.thread_time() - begun_s) / _SAMPLING_SHARE)

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()


def _tree_kib(pid: int, *, is_executor: bool) -> tuple[int, int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0  # it ended meanwhile
    children: list[str] = []
    # A JVM's children stand below whichever of its threads has started them.
    for task in tasks:
        with suppress(OSError):
            children += (task / "children").read_text().split()
    is_executor = is_executor or b"CoarseGrainedExecutorBackend" in command
    own = int(told.partition("\nPss:")[2].split()[0])
    below = [_tree_kib(int(child), is_executor=is_executor) for child in children]
    driver, executors = (sum(each[at] for each in below) for at in (0, 1))
    return (driver, executors + own) if is_executor else (driver + own, executors)


def run_measured(way: str, step: str, folder: Path) -> dict[str, Any]:
    """Take a step in a process tree of its own; what Spark shuffles is in the folder, too."""
    environment = os.environ | {
        "BATCHROUTER_PROCESSES": "1",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    command = [sys.executable, __file__, "--step", way, step, str(folder)]
    log = folder / f"{step}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=environment
        ) as process,
    ):
        memory = Memory(process.pid)
        assert process.stdout is not None
        out = process.stdout.read()
        memory.end()
    if process.returncode:
        raise SystemExit(f"{way}, {step}, ended with {process.returncode}:\n{log.read_text()}")
    told: dict[str, Any] = json.loads(out.strip().rsplit("\n", 1)[-1])
    return told | {"driver_mb": memory.driver_mb, "executors_mb": memory.executors_mb}


def plot(told: Told, path: Path) -> None:
    """Draw speed and memory over the size of the table."""
    here, spark = WAYS
    speed: list[Line] = []
    memory: list[Line] = []
    for step, style in STEPS.items():
        for color, way in (("C0", here), ("C1", spark)):
            values = [rows / one[way, step]["wall_s"] for rows, one in told.items()]
            speed.append((f"{step}, {way}", color + style, values))
        for color, way, field, who in (
            ("C0", here, "driver_mb", here),
            ("C1", spark, "driver_mb", "Spark's driver"),
            ("C2", spark, "executors_mb", "2 executors"),
        ):
            values = [one[way, step][field] for one in told.values()]
            memory.append((f"{step}, {who}", color + style, values))
    draw({"rows/s": speed, "peak MB": memory}, list(told), path)


def row_of(rows: int, way: str, step: str, one: dict[str, Any]) -> str:
    """Write a row of the table."""
    speed = f"{one['wall_s']:.1f} | {rows / one['wall_s']:,.0f}"
    executors = f"{one['executors_mb']:,.0f}" if one["executors_mb"] else "-"
    return f"| {rows:,} | {way} | {step} | {speed} | {one['driver_mb']:,.0f} | {executors} |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        way, step, folder = given.step
        run_step(way, step, Path(folder))
        return
    told: Told = {}
    print("| rows | | step | s | rows/s | driver MB | executors MB |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for rows in given.rows:
        told[rows] = {}
        for way in WAYS:
            one = measured(rows, partial(run_measured, way))
            for step, each in one.items():
                told[rows][way, step] = each
                print(row_of(rows, way, step, each), flush=True)
        if given.plot:
            plot(told, given.plot)


if __name__ == "__main__":
    main()
