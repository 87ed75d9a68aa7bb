"""How long an incremental job takes over a table that has not changed, and buys nothing.

Builds and lands a table of support tickets whose answers all succeed, and builds it again with
`incremental: true` against what was landed, in one process and with two workers, each run in a
process tree of its own, in turns; medians are printed.

Run ``python tests/benchmarks/bench_unchanged.py [--rows 200000] [--rounds 3] [--is-short]
[--table delta]``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_sizes import answer_parts, build, job_of, land, prepare
from process_tree import run_measured
from tickets import make_table

WAYS = {"one process": "1", "two workers": "2"}


def build_again(folder: Path, table: str) -> int:
    """Build against the landed table; gives how many rows were left out."""
    import fsspec

    from batchrouter.landing.report import LandingIdentity
    from batchrouter.landing.sinks import open_sink
    from batchrouter.manifest.build import build_manifest

    (folder / "again").mkdir(exist_ok=True)
    job = job_of(folder / "tickets.parquet")
    sink = open_sink(table)
    built = build_manifest(
        job,
        fs=fsspec.filesystem("file"),
        manifest_dir=str(folder / "again"),
        rows_dir=str(folder / "again"),
        token="t",
        bought=sink.succeeded(LandingIdentity("bench", "again", "run-1"), job.key_columns),
    )
    assert built.item_count == 0
    return built.unchanged_count


def run_step(folder: Path, table: str) -> None:
    """Build again here, and print what it took, imports left out."""
    prepare()
    begun_s, begun_cpu_s = time.perf_counter(), sum(os.times()[:4])
    rows = build_again(folder, table)
    wall_s, cpu_s = time.perf_counter() - begun_s, sum(os.times()[:4]) - begun_cpu_s
    print(json.dumps({"rows": rows, "wall_s": wall_s, "cpu_s": cpu_s}))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--is-short", action="store_true", help="bodies of about 90 bytes")
    parser.add_argument("--table", choices=["delta", "iceberg", "duckdb"], default="delta")
    parser.add_argument("--step", nargs=2, metavar=("FOLDER", "TABLE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(Path(given.step[0]), given.step[1])
        return
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as name:
        folder = Path(name)
        make_table(folder / "tickets.parquet", given.rows, is_short=given.is_short)
        build(folder)
        answer_parts(folder, all_succeed=True)
        land(folder, kind=f"{given.table}:")
        for _ in range(given.rounds):
            for way, processes in WAYS.items():
                environment = {**os.environ, "BATCHROUTER_PROCESSES": processes}
                command = [sys.executable, __file__, "--step", name, f"{given.table}:{name}/table"]
                told = run_measured(command, environment)
                assert told["rows"] == given.rows
                taken[way].append(told)
    print(f"{given.rows:,} unchanged rows in {given.table}; medians of {given.rounds}\n")
    print("| | s | CPU s | rows/s | peak MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way, rounds in taken.items():
        wall_s, cpu_s, peak_mb = (
            statistics.median(one[field] for one in rounds)
            for field in ("wall_s", "cpu_s", "peak_mb")
        )
        rate = given.rows / wall_s
        print(f"| {way} | {wall_s:.1f} | {cpu_s:.1f} | {rate:,.0f} | {peak_mb:.0f} |")


if __name__ == "__main__":
    main()
