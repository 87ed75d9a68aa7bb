"""What a tick of the landing sensor costs while many batches are open, beside one with few.

    .venv-dagster/bin/python tests/benchmarks/bench_dagster_sensor.py --batches 100 10000

Batches at a real router on a lane that does not answer for a day, and as many submissions in a
real Dagster instance on SQLite. The first hundred batches are bought; the others are copies of
their rows in the router's tables, since a tick reads them the same way. CPU seconds of this
process, requests to the router, and the peak memory.
"""

import argparse
import contextlib
import json
import resource
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_batchrouter import BatchrouterResource, batchrouter_assets, build_batchrouter_sensor

from batchrouter import Client
from batchrouter.run.identity import RunIdentity
from batchrouter.testing import RunningRouter, running_router

KEY, JOB = "labelled", "label"
_BOUGHT = 100
"""So many are really bought; buying takes the router most of a run's time."""

LANE = {
    "provider": "simulated-slow",
    "region": "global",
    "privacy_tiers": ["standard"],
    "capacity_items": 50_000_000,
    "options": {"latency_s": 86_400},
    "models": [
        {
            "name": "slow",
            "input_usd_per_mtok": "0.10",
            "output_usd_per_mtok": "0.40",
            "tasks": ["responses"],
        }
    ],
}


def buy(client: Client, namespace: str, number: int) -> str:
    """Buy a batch of one item as a run of this job and partition would."""
    identity = RunIdentity(namespace=namespace, job_name=JOB, run_key=f"{KEY}:p{number}")
    quote = client.quote_model("slow", estimated_items=1, max_output_tokens=8)
    item = {
        "customer_item_id": "1",
        "operation": "responses",
        "input": {"messages": [{"role": "user", "content": "x"}], "max_output_tokens": 8},
    }
    body = {
        "quote_id": quote.quote_id,
        "items": [item],
        "metadata": identity.metadata(generation=0, part=0, manifest_sha256="0", route="0"),
    }
    return client.submit_batch(body, idempotency_key=f"bench-{number:08}").id


def copied(data: Path, numbers: range) -> list[str]:
    """Give the router's tables a batch for each number, as the first one is but for its names."""
    [database] = data.glob("*.db")
    ids: list[str] = []
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.row_factory = sqlite3.Row
        first = dict(connection.execute("SELECT * FROM batches ORDER BY created_at").fetchone())
        quote = dict(
            connection.execute("SELECT * FROM quotes WHERE id = ?", [first["quote_id"]]).fetchone()
        )
        told = json.loads(first["metadata"])
        for number in numbers:
            ids.append(f"{first['id'][:-8]}{number:08}")
            quote_id = f"{quote['id'][:-8]}{number:08}"
            told["batchrouter_run_key"] = f"{KEY}:p{number}"
            names = {"id": ids[-1], "quote_id": quote_id, "metadata": json.dumps(told)}
            insert(connection, "quotes", {**quote, "id": quote_id})
            insert(connection, "batches", {**first, **names})
    return ids


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" for _ in row)
    statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"
    connection.execute(statement, list(row.values()))


def submitted(instance: dg.DagsterInstance, number: int, batch_id: str) -> None:
    metadata: dict[str, Any] = {
        "batchrouter/run_key": f"{KEY}:p{number}",
        "batchrouter/stage": "waiting",
        "batchrouter/batch_ids": [batch_id],
    }
    instance.report_runless_asset_event(
        dg.AssetMaterialization(f"{KEY}_submission", partition=f"p{number}", metadata=metadata)
    )


def measure(router: RunningRouter, folder: Path, count: int, bought: int) -> int:
    """Grow to so many open batches, and tick; return how many there are."""
    runs_url = str(folder / "runs")
    with Client(router.settings(runs_url=runs_url)) as client:
        namespace = client.settings.identity_namespace
        to_buy = range(bought, min(count, _BOUGHT))
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(lambda n: buy(client, namespace, n), to_buy))
    ids += copied(folder / "router", range(max(bought, _BOUGHT), count))
    partitions = dg.StaticPartitionsDefinition([f"p{number}" for number in range(count)])
    job = {
        "name": JOB,
        "params": {"part": None},
        "source": "t/${params.part}.csv",
        "key": "id",
        "request": {"kind": "chat", "user": "{body}"},
        "route": {"models": ["slow"]},
        "budget": "1.00",
        "sink": str(folder / "labelled"),
    }
    defs = dg.Definitions(
        assets=batchrouter_assets(job=job, key=KEY, partitions_def=partitions),
        sensors=[build_batchrouter_sensor(quiet_seconds=0.001)],
        resources={
            "batchrouter": BatchrouterResource(
                base_url=router.base_url, api_key=router.api_key, runs_url=runs_url
            )
        },
    )
    (folder / "home").mkdir(exist_ok=True)
    with dg.DagsterInstance.local_temp(str(folder / "home")) as instance:
        for number, batch_id in enumerate(ids, bought):
            submitted(instance, number, batch_id)
        cursor = None
        for name in ("first tick", "plain tick", "tick with the second look"):
            cursor = tick(defs, instance, cursor, name, count)
    return count


def tick(
    defs: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None, name: str, count: int
) -> str | None:
    if cursor is not None:
        told = json.loads(cursor)
        told["quiet_at"] = 0.0 if "second" in name else time.time() + 3600
        cursor = json.dumps(told)
    with dg.build_sensor_context(
        instance_ref=instance.get_ref(),
        definitions=defs,
        resources=dict(defs.resources or {}),
        cursor=cursor,
    ) as context:
        sensor = defs.resolve_sensor_def("batchrouter_sensor")
        began, began_s = time.process_time(), time.monotonic()
        data = sensor.evaluate_tick(context)
        cpu_s, wall_s = time.process_time() - began, time.monotonic() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"| {count:,} | {name} | {cpu_s:.2f} | {wall_s:.2f} | {peak_mib:.0f} "
        f"| {len(data.cursor or '')} | {data.skip_message} |",
        flush=True,
    )
    return data.cursor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 1000])
    wanted = parser.parse_args().batches
    config = {"lanes": [LANE], "credits": {"initial_usd": "1000.00"}}
    print("| open batches | | CPU s | wall s | peak MiB | cursor bytes | told |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | --- |")
    with (
        tempfile.TemporaryDirectory(prefix="bench-dagster-") as folder,
        running_router(Path(folder, "router"), config=config) as router,
    ):
        bought = 0
        for count in sorted(wanted):
            bought = measure(router, Path(folder), count, bought)


if __name__ == "__main__":
    main()
