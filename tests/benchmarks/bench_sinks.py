"""What a commit takes of memory, for each kind of table and mode, as the run grows fivefold.

Every measurement lands a run of so many rows (some 200 bytes each) by `open_sink` in a process of
its own, into a table that holds as many rows of another run; half of the keys of a `merge` are in
it. The peak is the process's own, imports included. PostgreSQL's server is another process, and is
not counted; it is left out unless ``--postgresql URL`` names a database that may be written.

Run ``python tests/benchmarks/bench_sinks.py [--rows 300000] [--kind delta] [--mode merge]``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench_land import peak_mib
from process_tree import run_measured

MODES = ("append", "replace_run", "overwrite", "merge")
ONLY_WHOLE_RUNS = ("append", "replace_run")
BATCH_ROWS = 4096


def places(root: Path, postgresql: str | None) -> dict[str, tuple[str, dict[str, str]]]:
    """Name the sink of each kind, and what its process needs to reach it."""
    sqlite = root / "t.db"
    if root.is_absolute():
        sqlite.touch()  # the connection of a sink names a file that is there
    catalog = {"uri": f"sqlite:///{root}/catalog.db", "warehouse": f"file://{root}/warehouse"}
    found = {
        "parquet": (f"parquet:{root / 'parquet'}", {}),
        "delta": (f"delta:{root / 'delta'}", {}),
        "iceberg": (
            "iceberg:lake.ns.t",
            {f"PYICEBERG_CATALOG__LAKE__{name.upper()}": value for name, value in catalog.items()},
        ),
        "duckdb": (f"duckdb:{root / 't.duckdb'}#t", {}),
        "sqlite": ("sqlite:here#t", {"BATCHROUTER_CONNECTION_HERE": f"sqlite:///{sqlite}"}),
    }
    if postgresql:
        table = f"bench_{uuid4().hex}"
        found["postgresql"] = (
            f"postgresql:here#{table}",
            {"BATCHROUTER_CONNECTION_HERE": postgresql},
        )
    return found


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([
        ("id", pa.int64()),
        ("note", pa.string()),
        ("_status", pa.string()),
        ("_cost_usd", pa.decimal128(38, 12)),
        ("_run_key", pa.string()),
        ("_request_hash", pa.string()),
        ("_completed_at", pa.timestamp("us", "UTC")),
    ])


def _rows(first: int, count: int, run: str) -> Iterator[Any]:
    import pyarrow as pa

    for start in range(first, first + count, BATCH_ROWS):
        ids = range(start, min(start + BATCH_ROWS, first + count))
        columns = [
            ids,
            [os.urandom(60).hex() for _ in ids],
            ["succeeded"] * len(ids),
            [None] * len(ids),
            [run] * len(ids),
            [f"2-{os.urandom(16).hex()}" for _ in ids],
            [None] * len(ids),
        ]
        yield pa.record_batch(columns, schema=_schema())  # pyright: ignore[reportArgumentType] - ranges are sequences


def land(url: str, mode: str, run: str, first: int, count: int) -> None:
    """Land one run and print what it took."""
    from batchrouter.landing.report import LandingIdentity
    from batchrouter.landing.sinks import Writing, open_sink

    sink = open_sink(url, None, Writing(mode, ("id",)))  # pyright: ignore[reportArgumentType] - one of the modes
    identity = LandingIdentity(
        "bench", run, f"{run}-0a1b", f"bought for {run}", again=False, models="model"
    )
    started_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
    sink.write(_rows(first, count, run), _schema(), identity)
    told = {
        "wall_s": time.perf_counter() - started_s,
        "cpu_s": sum(os.times()[:4]) - cpu_s,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(told))


def measure(kind: str, mode: str, count: int, postgresql: str | None) -> dict[str, Any]:
    """Fill a table of this kind, and land a run as large into it."""
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as folder:
        url, env = places(Path(folder), postgresql)[kind]
        own = [sys.executable, __file__, "--land"]
        at_first = "append" if kind == "parquet" else "overwrite"
        env = {**os.environ, **env}
        run_measured([*own, json.dumps([url, at_first, "sunday", 0, count])], env)
        return run_measured([*own, json.dumps([url, mode, "monday", count // 2, count])], env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--kind")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--postgresql", metavar="URL")
    parser.add_argument("--land", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.land:
        land(*json.loads(asked.land))
        return
    counts = (asked.rows, 5 * asked.rows)
    print("| table | mode | " + " | ".join(f"{count:,} rows" for count in counts) + " |")
    print("| --- | --- | --- | --- |")
    for kind in places(Path(), asked.postgresql):
        for mode in ONLY_WHOLE_RUNS if kind == "parquet" else MODES:
            if asked.kind in (None, kind) and asked.mode in (None, mode):
                told = [measure(kind, mode, count, asked.postgresql) for count in counts]
                cells = [f"{each['peak_mib']:.0f} MiB, {each['cpu_s']:.1f} s" for each in told]
                print(f"| {kind} | `{mode}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
