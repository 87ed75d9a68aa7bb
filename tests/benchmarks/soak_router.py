"""Many small batches through one router: does its memory stay flat, does its database stop growing?

Starts an embedded router whose retention is a minute, buys small batches from several threads with
quotes of their own, each over the same manifest's lines, and prints a line every so many batches:

- ``RSS``: the router's resident memory; ``database``: ``router.db`` with its WAL; ``rows``: batches
  and durable workflows that are kept; ``files``: files in the data folder;
- ``batches/s`` since the line before, and the median and 99th percentile of a create.

It ends with exit code 1 when a batch did not succeed, or when the second half of the soak added
more than a quarter to the memory or the database of its middle.

Run ``python tests/benchmarks/soak_router.py [--batches 20000] [--every 1000] [--threads 4]``.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from batchrouter.testing import RunningRouter, running_router

ROWS = 3
SETTLE_WITHIN_S = 600.0
GROWTH = 1.25
_TRIES = 10
_BUSY = 503
# A minute; the sweep comes every ten seconds.
RETENTION = """
[retention]
sweep_every_s = 10
unused_upload_days = 0.0007
manifest_after_end_days = 0.0007
artifact_days = 0.0007
quote_days = 0.0007
event_days = 0.0007
batch_days = 0.0007
workflow_days = 0.0007
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the router stands after some batches; sizes in bytes."""

    batches: int
    rss_bytes: int
    database_bytes: int
    rows: int
    workflows: int
    files: int


def main() -> int:
    """Soak, and say whether anything grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "router.toml"
        config.write_text(_built_in_lanes() + RETENTION, encoding="utf-8")
        with running_router(data_dir=Path(folder) / "router", config=config) as router:
            readings = soak(router, options.batches, options.every, options.threads)
            return judge(readings)


def soak(router: RunningRouter, batches: int, every: int, threads: int) -> list[Reading]:
    """Buy batches, and read the router's sizes every so many of them."""
    print(
        "| batches | RSS | database | batch rows | workflows | files | batches/s"
        " | create p50 | p99 |"
    )
    print("| --- " * 9 + "|", flush=True)
    readings: list[Reading] = []
    with (
        httpx.Client(
            base_url=router.base_url,
            headers={"Authorization": f"Bearer {router.api_key}"},
            timeout=120,
        ) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        for first in range(0, batches, every):
            count = min(every, batches - first)
            started_s = time.monotonic()
            waits_s = list(pool.map(lambda _: _buy(client), range(count)))
            _wait_until_done(client)
            rate = count / (time.monotonic() - started_s)
            reading = _read(router, first + count)
            readings.append(reading)
            p50, p99 = statistics.median(waits_s), statistics.quantiles(waits_s, n=100)[98]
            print(
                f"| {reading.batches:,} | {reading.rss_bytes / 1e6:.0f} MB"
                f" | {reading.database_bytes / 1e6:.1f} MB | {reading.rows:,}"
                f" | {reading.workflows:,} | {reading.files:,} | {rate:.1f}"
                f" | {p50 * 1000:.0f} ms | {p99 * 1000:.0f} ms |",
                flush=True,
            )
    return readings


def judge(readings: list[Reading]) -> int:
    """Compare the end with the middle."""
    middle, end = readings[len(readings) // 2], readings[-1]
    grown = [
        f"{name} grew from {before:,} to {after:,} bytes"
        for name, before, after in (
            ("memory", middle.rss_bytes, end.rss_bytes),
            ("the database", middle.database_bytes, end.database_bytes),
        )
        if after > before * GROWTH
    ]
    print("\n".join(grown) or "flat: the second half added less than a quarter")
    return 1 if grown else 0


def _buy(client: httpx.Client) -> float:
    """Quote and create one batch; returns the seconds that the create took."""
    question = {"models": ["gpt-4o-mini"], "task": "responses", "estimated_items": ROWS}
    quote = _post(client, "/v1/quotes/model", question)
    items = [
        {
            "customer_item_id": f"row-{number}",
            "operation": "responses",
            "input": {
                "messages": [{"role": "user", "content": f"Ticket {number}: where is my order?"}],
                "max_output_tokens": 16,
            },
        }
        for number in range(ROWS)
    ]
    body = {"quote_id": quote["quote_id"], "items": items}
    started_s = time.perf_counter()
    headers = {"Idempotency-Key": quote["quote_id"]}
    _post(client, "/v1/batches", body, headers)
    return time.perf_counter() - started_s


def _post(
    client: httpx.Client, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Post, and again while the router says that it is busy."""
    for _ in range(_TRIES):
        reply = client.post(path, json=body, headers=headers)
        if reply.status_code != _BUSY:
            break
        time.sleep(float(reply.headers["Retry-After"]))
    return reply.raise_for_status().json()


def _wait_until_done(client: httpx.Client) -> None:
    give_up_at = time.monotonic() + SETTLE_WITHIN_S
    while open_batches := list(_open(client)):
        if time.monotonic() > give_up_at:
            raise SystemExit(f"{len(open_batches)} batches did not end: {open_batches[:3]}")
        time.sleep(0.1)
    failed = client.get("/v1/batches", params={"state": "failed", "limit": 1}).json()["data"]
    if failed:
        raise SystemExit(f"a batch failed: {failed[0]}")


def _open(client: httpx.Client) -> Iterator[str]:
    states = ["queued", "routing", "running", "finalizing", "cancelling"]
    query = {"state": states, "limit": 3, "view": "summary"}
    for batch in client.get("/v1/batches", params=query).raise_for_status().json()["data"]:
        yield batch["id"]


def _read(router: RunningRouter, batches: int) -> Reading:
    status = Path(f"/proc/{router.pid}/status").read_text("ascii")
    rss_kib = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    database = router.data_dir / "router.db"
    sizes = [path.stat().st_size for path in router.data_dir.glob("router.db*")]
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows, workflows = (
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("batches", "workflow_status")
        )
    finally:
        connection.close()
    files = sum(1 for path in router.data_dir.rglob("*") if path.is_file())
    return Reading(batches, int(rss_kib) * 1024, sum(sizes), rows, workflows, files)


def _built_in_lanes() -> str:
    from importlib import resources

    built_in = resources.files("batchrouter.server").joinpath("default_router.toml")
    return built_in.read_text("utf-8")


if __name__ == "__main__":
    sys.exit(main())
