"""Landing against the loops that one would write: rows a second, CPU and peak memory.

    python tests/benchmarks/bench_land.py [--lines 200000] [--rounds 3]

Each method lands the same artifact (chat bodies with a three-field object, 1 % failed, a few
answers that are not JSON) into Parquet, in a process of its own. Ours also joins the row
snapshot, checks every item id, keeps every error and reconciles; `ours, shuffled` is the path
by an index on disk. The loops decode, check the three fields by hand, and write; nothing else.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

LABELS = ["billing", "bug", "how_to", "refund"]
METHODS = ("ours", "ours, 2 workers", "ours, shuffled", "orjson loop", "json loop")
BATCH_ROWS = 8192


def make_inputs(folder: Path, lines: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(7)
    encoded = [_line(row, chance) for row in range(lines)]
    (folder / "artifact.jsonl").write_text("".join(encoded), encoding="utf-8")
    chance.shuffle(encoded)
    (folder / "shuffled.jsonl").write_text("".join(encoded), encoding="utf-8")
    numbers = range(lines)
    table = pa.table({
        "_row": pa.array(numbers, pa.int64()),
        "_line": pa.array(numbers, pa.int64()),
        "_item_id": [_item_id(row) for row in numbers],
        "_request_hash": [f"{row:032x}" for row in numbers],
        "_skip_reason": pa.nulls(lines, pa.string()),
        "ticket_id": pa.array(numbers, pa.int64()),
        "subject": [f"Ticket number {row} about an invoice" for row in numbers],
    })
    pq.write_table(table, folder / "rows.parquet", row_group_size=50_000)


def _item_id(row: int) -> str:
    return f"{row * 2654435761 % 2**64:026d}"


def _line(row: int, chance: random.Random) -> str:
    answer = {
        "label": chance.choice(LABELS),
        "score": round(chance.random(), 4),
        "reason": "The customer asks why the invoice was charged twice. " * chance.randint(1, 2),
    }
    text = "I would say billing." if chance.random() < 0.0005 else json.dumps(answer)
    failed = chance.random() < 0.01
    body = {
        "id": f"chatcmpl-{row}",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 420, "completion_tokens": 40, "total_tokens": 460},
    }
    line = {
        "customer_item_id": _item_id(row),
        "batch_item_id": f"item_{row:032x}",
        "sequence_no": row,
        "operation": "responses",
        "status": "failed" if failed else "completed",
        "provider": "simulated-a",
        "provider_model": "gpt-4o-mini",
        "attempt": 1,
        "usage": {"input_tokens": 420, "output_tokens": 40, "total_tokens": 460},
        "cost": {"currency": "usd", "amount": "0.000091800000"},
        "output": None if failed else body,
        "error": {"code": "content_policy", "message": "refused"} if failed else None,
        "completed_at": "2026-11-22T10:00:00.123Z",
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


def land_ours(folder: Path, artifact: str) -> int:
    import fsspec

    from batchrouter.job import Job
    from batchrouter.landing.land import LandingIdentity, PartToLand, land_parts
    from batchrouter.landing.sinks import open_sink

    job = Job.model_validate({
        "name": "bench",
        "source": "tickets.parquet",
        "key": "ticket_id",
        "keep": ["subject"],
        "request": {
            "kind": "chat",
            "user": "{subject}",
            "output": {
                "label": {"type": "string", "enum": LABELS},
                "score": {"type": "number"},
                "reason": {"type": "string"},
            },
        },
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "1.00",
        "sink": "table",
    })
    import pyarrow.parquet as pq

    rows = pq.read_metadata(folder / "rows.parquet").num_rows
    report = land_parts(
        job,
        fs=fsspec.filesystem("file"),
        parts=[
            PartToLand(0, str(folder / "rows.parquet"), rows, str(folder / artifact), "batch_0")
        ],
        sink=open_sink(str(folder / "table")),
        identity=LandingIdentity("bench", "run", "run-0"),
        rejects_dir=str(folder),
        token="bench",
    )
    return report.rows


def land_by_loop(folder: Path, loads: Callable[[bytes], Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    writer = None
    for batch in _batches(folder / "artifact.jsonl"):
        table = pa.Table.from_pylist([_checked(loads(line), loads) for line in batch], _schema())
        writer = writer or pq.ParquetWriter(
            folder / "loop.parquet", table.schema, compression="zstd"
        )
        writer.write_table(table)
        rows += len(table)
    assert writer is not None
    writer.close()
    return rows


def _batches(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        batch: list[bytes] = []
        for line in file:
            batch.append(line)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([
        ("item_id", pa.string()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("raw", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_usd", pa.decimal128(38, 12)),
        ("completed_at", pa.string()),
    ])


def _checked(line: dict[str, Any], loads: Callable[[bytes], Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "item_id": line["customer_item_id"],
        "status": line["status"],
        "provider": line["provider"],
        "model": line["provider_model"],
        "input_tokens": line["usage"]["input_tokens"],
        "output_tokens": line["usage"]["output_tokens"],
        "cost_usd": Decimal(line["cost"]["amount"]),
        "completed_at": line["completed_at"],
    }
    if line["error"]:
        return row | {"error_code": line["error"]["code"]}
    text = line["output"]["choices"][0]["message"]["content"]
    try:
        answer = loads(text)
        fits = answer["label"] in LABELS and isinstance(answer["score"], int | float)
    except (ValueError, KeyError):
        fits = False
        answer = {}
    return row | (answer if fits else {"status": "invalid_output", "raw": text})


def run_method(method: str, folder: Path) -> None:
    """Land once and print what it cost, imports left out."""
    if method.startswith("ours"):
        artifact = "shuffled.jsonl" if method == "ours, shuffled" else "artifact.jsonl"

        def work() -> int:
            return land_ours(folder, artifact)

    else:
        loads = json.loads
        if method == "orjson loop":
            import orjson

            loads = orjson.loads

        def work() -> int:
            return land_by_loop(folder, loads)

    _import_all()
    os.environ["BATCHROUTER_PROCESSES"] = "2" if method == "ours, 2 workers" else "1"
    started_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
    rows = work()
    told = {
        "rows": rows,
        "wall_s": time.perf_counter() - started_s,
        "cpu_s": sum(os.times()[:4]) - cpu_s,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(told))


def peak_mib() -> float:
    # ru_maxrss would count the parent's peak, which a child has until it execs.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def _import_all() -> None:
    process = import_module("batchrouter.manifest.process")
    process.own_process()
    process.prepare_process()
    for name in ("fsspec", "pyarrow.compute", "pyarrow.parquet", "batchrouter.landing.land"):
        import_module(name)
    import_module("batchrouter.job")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.method:
        run_method(asked.method, asked.folder)
        return
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as temporary:
        folder = Path(temporary)
        make_inputs(folder, asked.lines)
        size_mb = (folder / "artifact.jsonl").stat().st_size / 1e6
        print(f"{asked.lines:,} lines, {size_mb:.0f} MB; medians of {asked.rounds}")
        told: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for _ in range(asked.rounds):
            for method in METHODS:
                command = [sys.executable, __file__, "--method", method, "--folder", temporary]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                told[method].append(json.loads(done.stdout))
        print(f"{'method':<16}{'rows/s':>10}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}")
        for method, rounds in told.items():
            wall_s, cpu_s, peak_mib = (
                statistics.median(each[name] for each in rounds)
                for name in ("wall_s", "cpu_s", "peak_mib")
            )
            rate = rounds[0]["rows"] / wall_s
            print(f"{method:<16}{rate:>10,.0f}{wall_s:>9.2f}{cpu_s:>9.2f}{peak_mib:>10.0f}")


if __name__ == "__main__":
    main()
