"""How fast a manifest is built, beside the loops that one would write by hand.

Makes a table of support tickets in a temporary folder, and writes its manifest three ways, each in
a process of its own, interleaved, the median of three rounds:

- ``batchrouter``, in one process and shared with two workers (the peak is then that of the first
  process alone): the whole build: UTF-8 checked, keys hashed and proven unique, sha256, the row
  snapshot written;
- ``orjson`` and ``json.dumps``: a loop over the same Parquet batches that writes lines and their
  sha256, and nothing else.

Run ``python tests/benchmarks/bench_build.py [--rows 200000] [--rounds 3]``.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tickets import make_table

WAYS = ("batchrouter", "batchrouter, 2", "orjson", "json.dumps")
SYSTEM = "You label support tickets for a shop. Answer with one of the intents. " * 4
INTENTS = ["billing", "bug", "how_to", "refund", "shipping", "account"]
OUTPUT = {"intent": {"type": "string", "enum": INTENTS}, "urgent": {"type": "boolean"}}


def build(source: Path, target: Path) -> None:
    """Build with batchrouter."""
    import fsspec

    from batchrouter.job import Chat, Job, Route
    from batchrouter.manifest.build import build_manifest

    chat = Chat(
        system=SYSTEM,  # pyright: ignore[reportArgumentType] - text becomes a template
        user="Subject: {subject}\n\n{body}",  # pyright: ignore[reportArgumentType] - as above
        output=OUTPUT,
        parameters={"max_output_tokens": 64, "temperature": 0},
    )
    job = Job(
        name="bench", source=source, key="id", request=chat, route=Route(models=["m"]),
        budget="none", sink="s", keep=["subject"],
    )  # fmt: skip
    fs = fsspec.filesystem("file")
    build_manifest(job, fs=fs, manifest_dir=str(target), rows_dir=str(target), token="t")


def loop(source: Path, target: Path, dumps: Callable[[Any], bytes]) -> None:
    """Write the same requests with a dict a row."""
    import pyarrow.parquet as pq

    schema: dict[str, Any] = {"type": "object", "properties": OUTPUT, "required": list(OUTPUT)}
    schema["additionalProperties"] = False
    named = {"name": "output", "strict": True, "schema": schema}
    digest = hashlib.sha256()
    with (target / "t-part-00000.jsonl").open("wb", buffering=1 << 20) as file:
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
        for batch in parquet.iter_batches(4096, use_threads=False):
            for row in batch.to_pylist():
                user = f"Subject: {row['subject']}\n\n{row['body']}"
                line = dumps({
                    "customer_item_id": row["id"],
                    "operation": "responses",
                    "input": {
                        "messages": [
                            {"role": "system", "content": SYSTEM},
                            {"role": "user", "content": user},
                        ],
                        "max_output_tokens": 64,
                        "temperature": 0,
                        "response_format": {"type": "json_schema", "json_schema": named},
                    },
                })  # fmt: skip
                file.write(line + b"\n")
                digest.update(line)


def tree_cpu_s() -> float:
    """Give the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def measure(way: str, source: Path) -> dict[str, float]:
    """Run one way here, and say what it took; imports are excluded from the times."""
    import fsspec  # noqa: F401 - loaded before the clock starts
    import orjson

    import batchrouter.manifest.build  # noqa: F401 - loaded before the clock starts
    from batchrouter.manifest.process import own_process, prepare_process

    own_process()
    prepare_process()

    ways: dict[str, Callable[[Path, Path], None]] = {
        "batchrouter": build,
        "batchrouter, 2": build,
        "orjson": lambda s, t: loop(s, t, orjson.dumps),
        "json.dumps": lambda s, t: loop(s, t, lambda row: json.dumps(
            row, ensure_ascii=False, separators=(",", ":")).encode()),
    }  # fmt: skip
    os.environ["BATCHROUTER_PROCESSES"] = "2" if way.endswith(", 2") else "1"
    with tempfile.TemporaryDirectory() as target:
        wall_s, cpu_s = time.perf_counter(), tree_cpu_s()
        ways[way](source, Path(target))
        wall_s, cpu_s = time.perf_counter() - wall_s, tree_cpu_s() - cpu_s
        size = sum(path.stat().st_size for path in Path(target).glob("*.jsonl"))
    status = Path("/proc/self/status").read_text()
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return {"mb": size / 1e6, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_kb / 1024}


def main() -> None:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SOURCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tickets.parquet"
        make_table(source, options.rows)
        for _ in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, str(source)]
                out = subprocess.run(command, check=True, capture_output=True, text=True)
                taken[way].append(json.loads(out.stdout))
    print_table(taken, options.rows)


def print_table(taken: dict[str, list[dict[str, float]]], rows: int) -> None:
    """Print medians; ratios are against json.dumps, by CPU."""
    medians = {
        way: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        for way, runs in taken.items()
    }
    size = medians["batchrouter"]["mb"]
    print(f"{rows:,} rows, {size:,.0f} MB of lines, median of {len(taken['orjson'])} rounds\n")
    heads = ("MB/s", "rows/s", "wall s", "CPU s", "MB/CPU s", "x", "peak MB")
    print(" " * 14 + "".join(f"{head:>10}" for head in heads))
    for way, m in medians.items():
        ratio = medians["json.dumps"]["cpu_s"] / m["cpu_s"]
        cells = (
            f"{m['mb'] / m['wall_s']:.0f}",
            f"{rows / m['wall_s']:,.0f}",
            f"{m['wall_s']:.2f}",
            f"{m['cpu_s']:.2f}",
            f"{m['mb'] / m['cpu_s']:.0f}",
            f"{ratio:.1f}",
            f"{m['peak_mb']:.0f}",
        )
        print(f"{way:14}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
