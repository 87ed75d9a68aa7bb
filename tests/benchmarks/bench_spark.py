"""How fast a manifest is built on Spark, beside one process on the same rows.

Makes a table of support tickets in a temporary folder and builds it in one process, and on a
cluster of two executors on this machine (`local-cluster[2,1,2048]`), each in a process tree of its
own. The time is that of the build alone, keys checked; the start of the JVMs is left out. The
memory of the driver (its Python and its JVM) and of the executors (JVMs and Python workers) is
their peak, proportional (PSS).

Run ``python tests/benchmarks/bench_spark.py [--rows 200000 2000000]`` in `.venv-spark`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tickets import make_table

WAYS = ("one process", "Spark, 2 executors")
_CLUSTER = "local-cluster[2,1,2048]"
_PARTITION_BYTES = str(16 << 20)
_SAMPLE_S = 0.2


def job_of(source: Path) -> Any:
    """Ask a short prompt of each ticket."""
    from batchrouter.job import Chat, Job, Route

    chat = Chat(
        system="You label support tickets for a shop.",  # pyright: ignore[reportArgumentType] - text becomes a template
        user="{body}",  # pyright: ignore[reportArgumentType] - as above
        parameters={"max_output_tokens": 64},
    )
    return Job(
        name="bench", source=str(source), key="id", request=chat, route=Route(models=["m"]),
        budget="none", sink="out",
    )  # fmt: skip


def build_here(source: Path, target: Path) -> None:
    """Build in one process."""
    import fsspec

    from batchrouter.manifest.build import build_manifest

    os.environ["BATCHROUTER_PROCESSES"] = "1"
    folders = {"manifest_dir": str(target / "manifest"), "rows_dir": str(target / "rows")}
    begun_s = time.perf_counter()
    built = build_manifest(job_of(source), fs=fsspec.filesystem("file"), token="t", **folders)
    tell(begun_s, built.item_count)


def build_on_spark(source: Path, target: Path) -> None:
    """Build on a cluster of this machine."""
    from pyspark.sql import SparkSession

    from batchrouter.spark import build_manifest

    builder = SparkSession.builder.master(_CLUSTER).config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.files.maxPartitionBytes", _PARTITION_BYTES)
    spark = builder.config("spark.sql.shuffle.partitions", "4").getOrCreate()
    spark.range(100).mapInArrow(lambda batches: batches, "id long").count()
    begun_s = time.perf_counter()
    built = build_manifest(spark.read.parquet(str(source)), job_of(source), str(target))
    tell(begun_s, built.item_count)
    spark.stop()


def tell(begun_s: float, items: int) -> None:
    """Print what a build took."""
    print(json.dumps({"wall_s": time.perf_counter() - begun_s, "items": items}), flush=True)


class Memory:
    """The peak of a process tree, its executors apart."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self.driver_kib = self.executors_kib = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            driver, executors = _tree_kib(self._pid, is_executor=False)
            self.driver_kib = max(self.driver_kib, driver)
            self.executors_kib = max(self.executors_kib, executors)

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()


def _tree_kib(pid: int, *, is_executor: bool) -> tuple[int, int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # A JVM's children stand below whichever of its threads has started them.
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split() if task.name != str(pid) else []
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0  # it ended meanwhile
    is_executor = is_executor or b"CoarseGrainedExecutorBackend" in command
    own = int(told.partition("\nPss:")[2].split()[0])
    below = [_tree_kib(int(child), is_executor=is_executor) for child in children]
    driver, executors = (sum(each[at] for each in below) for at in (0, 1))
    return (driver, executors + own) if is_executor else (driver + own, executors)


def measured(way: str, source: Path, folder: Path) -> dict[str, Any]:
    """Run one way in a process of its own."""
    target = folder / way.replace(" ", "-")
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, __file__, "--way", way, str(source), str(target)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=folder, env=environment,
    ) as process:  # fmt: skip
        memory = Memory(process.pid)
        assert process.stdout is not None
        out = process.stdout.read()
        memory.end()
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return told | {"driver": memory.driver_kib, "executors": memory.executors_kib}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--way")
    parser.add_argument("paths", type=Path, nargs="*")
    given = parser.parse_args()
    if given.way:
        build = build_here if given.way == WAYS[0] else build_on_spark
        build(*given.paths)
        return
    print("| rows | | s | rows/s | driver MB | executors MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for rows in given.rows:
        for way in WAYS:
            with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as folder:
                source = Path(folder) / "tickets.parquet"
                make_table(source, rows)
                told = measured(way, source, Path(folder))
            assert told["items"] == rows
            megabytes = [f"{told[each] * 1024 / 1e6:.0f}" for each in ("driver", "executors")]
            speed = f"{told['wall_s']:.1f} | {rows / told['wall_s']:,.0f}"
            print(f"| {rows:,} | {way} | {speed} | {' | '.join(megabytes)} |")


if __name__ == "__main__":
    main()
