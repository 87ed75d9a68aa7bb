"""How fast a manifest is built, beside the loops that one would write by hand.

Makes a table of support tickets in a temporary folder, and writes its manifest seven ways, each in
a process of its own, in turns; medians are printed, and the peak is that of the process tree:

- ``batchrouter``, in one process and shared with two workers: the whole build: UTF-8 checked, keys
  hashed and proven unique, sha256, the row snapshot written; ``no kernel`` is the same, in one
  process, without the kernel in C;
- ``orjson`` and ``json.dumps``: a loop over the same Parquet batches that writes lines and their
  sha256, and nothing else;
- ``polars``, a lazy query of ``struct.json_encode`` with two threads, and ``DuckDB``, a ``COPY``
  with JSON: the lines and nothing else, and no sha256.

Run ``python tests/benchmarks/bench_build.py [--rows 200000] [--rounds 3] [--is-short]``.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from process_tree import run_measured
from tickets import make_table

WAYS = ("batchrouter", "batchrouter, 2", "no kernel", "orjson", "json.dumps", "polars", "DuckDB")
SYSTEM = "You label support tickets for a shop. Answer with one of the intents. " * 4
INTENTS = ["billing", "bug", "how_to", "refund", "shipping", "account"]
OUTPUT = {"intent": {"type": "string", "enum": INTENTS}, "urgent": {"type": "boolean"}}

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": OUTPUT,
    "required": list(OUTPUT),
    "additionalProperties": False,
}
_NAMED = {"name": "output", "strict": True, "schema": _SCHEMA}


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


def _line(item_id: str, user: str) -> dict[str, Any]:
    return {
        "customer_item_id": item_id,
        "operation": "responses",
        "input": {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": user},
            ],
            "max_output_tokens": 64,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": _NAMED},
        },
    }


def loop(source: Path, target: Path, dumps: Callable[[Any], bytes]) -> None:
    """Write the same requests with a dict a row."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    with (target / "t-part-00000.jsonl").open("wb", buffering=1 << 20) as file:
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
        for batch in parquet.iter_batches(4096, use_threads=False):
            for row in batch.to_pylist():
                user = f"Subject: {row['subject']}\n\n{row['body']}"
                line = dumps(_line(row["id"], user))
                file.write(line + b"\n")
                digest.update(line)


def build_with_polars(source: Path, target: Path) -> None:
    """Write the same lines with a lazy query."""
    import polars as pl

    head, middle, tail = _constants()
    user = pl.concat_str(pl.lit("Subject: "), "subject", pl.lit("\n\n"), "body")
    # A struct of one field, encoded, is `{"c":"…"}`: its text with the braces taken off.
    text = pl.struct(user.alias("c")).struct.json_encode().str.slice(5)
    line = pl.concat_str(
        pl.lit(head), "id", pl.lit(middle), text.str.strip_suffix("}"), pl.lit(tail)
    )
    pl.scan_parquet(source).select(line).sink_csv(
        target / "t.jsonl", include_header=False, quote_style="never"
    )


def build_with_duckdb(source: Path, target: Path) -> None:
    """Write lines of the same meaning with a query."""
    import duckdb

    head, middle, tail = _constants()
    with duckdb.connect(config={"threads": 2}) as database:
        database.execute(
            "COPY (SELECT $1 || id || $2 || to_json('Subject: ' || subject || chr(10) || chr(10)"
            " || body) || $3 FROM read_parquet($4)) TO '" + f"{target}/t.jsonl"
            "' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER e'\\x01')",
            [head, middle, tail, str(source)],
        )


def _constants() -> tuple[str, str, str]:
    """Give what stands before the id, between it and the user's text, and behind that."""
    whole = _line("<id>", "<user>")
    head, rest = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).split("<id>")
    middle, tail = rest.split('"<user>"')
    return head, middle, tail


def tree_cpu_s() -> float:
    """Give the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def measure(way: str, source: Path) -> dict[str, float]:
    """Run one way here, and say what it took; imports are excluded from the times."""
    from batchrouter.manifest.process import own_process, prepare_process

    own_process()
    prepare_process()
    import fsspec  # noqa: F401 - loaded before the clock starts
    import orjson

    import batchrouter.manifest.build  # noqa: F401 - loaded before the clock starts

    ways: dict[str, Callable[[Path, Path], None]] = {
        "batchrouter": build,
        "batchrouter, 2": build,
        "no kernel": build,
        "orjson": lambda s, t: loop(s, t, orjson.dumps),
        "json.dumps": lambda s, t: loop(s, t, lambda row: json.dumps(
            row, ensure_ascii=False, separators=(",", ":")).encode()),
        "polars": build_with_polars,
        "DuckDB": build_with_duckdb,
    }  # fmt: skip
    for name in {"polars": ["polars"], "DuckDB": ["duckdb"]}.get(way, []):
        import_module(name)
    os.environ["POLARS_MAX_THREADS"] = "2"
    os.environ["BATCHROUTER_COMPILED"] = "0" if way == "no kernel" else "1"
    os.environ["BATCHROUTER_PROCESSES"] = "2" if way.endswith(", 2") else "1"
    with tempfile.TemporaryDirectory() as target:
        wall_s, cpu_s = time.perf_counter(), tree_cpu_s()
        ways[way](source, Path(target))
        wall_s, cpu_s = time.perf_counter() - wall_s, tree_cpu_s() - cpu_s
        size = sum(path.stat().st_size for path in Path(target).glob("*.jsonl"))
    return {"mb": size / 1e6, "wall_s": wall_s, "cpu_s": cpu_s}


def main() -> None:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--is-short", action="store_true", help="bodies of about 90 bytes")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SOURCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tickets.parquet"
        make_table(source, options.rows, is_short=options.is_short)
        for _ in range(options.rounds):
            for way in options.ways:
                command = [sys.executable, __file__, "--measure", way, str(source)]
                taken[way].append(run_measured(command))
    print_table(taken, options.rows)


def print_table(taken: dict[str, list[dict[str, float]]], rows: int) -> None:
    """Print medians; ratios are against json.dumps, by CPU."""
    medians = {
        way: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        for way, runs in taken.items()
    }
    first = next(iter(medians))
    size, rounds = medians[first]["mb"], len(taken[first])
    print(f"{rows:,} rows, {size:,.0f} MB of lines, median of {rounds} rounds\n")
    heads = ("MB/s", "rows/s", "wall s", "CPU s", "MB/CPU s", "x", "peak MB")
    print(" " * 14 + "".join(f"{head:>10}" for head in heads))
    for way, m in medians.items():
        ratio = medians.get("json.dumps", medians[first])["cpu_s"] / m["cpu_s"]
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
