"""Measures many deferred waits in one process: requests at the router, CPU, memory.

    .venv-airflow/bin/python tests/on_airflow/bench_waits.py --seconds 60

Real triggers in one event loop, as a triggerer runs them, beside one router; prints a table. The
baseline is what the batch triggers of other providers do: each asks for its own batch, in a thread.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

POLL_S = 10


async def shared(batch_ids: list[str], count: int, seconds_s: float) -> None:
    from airflow_provider_batchrouter.triggers import BatchrouterBatchTrigger

    until = (datetime.now(UTC) + timedelta(seconds=seconds_s)).isoformat()
    triggers = [
        BatchrouterBatchTrigger(
            batch_ids=[batch_ids[number % len(batch_ids)]], until=until, wait="poll"
        )
        for number in range(count)
    ]
    await asyncio.gather(*(anext(each.run()) for each in triggers))


async def each_its_own(batch_ids: list[str], count: int, seconds_s: float) -> None:
    from airflow_provider_batchrouter.hooks import BatchrouterHook

    client = BatchrouterHook().get_client()
    end_s = time.monotonic() + seconds_s

    async def wait(batch_id: str) -> None:
        while time.monotonic() < end_s:
            await asyncio.to_thread(client.retrieve_batch, batch_id)
            await asyncio.sleep(POLL_S)

    await asyncio.gather(*(wait(batch_ids[number % len(batch_ids)]) for number in range(count)))
    client.close()


def measured() -> None:
    """In a process of its own: `how count seconds` and the batches on stdin."""
    how, count, seconds = sys.argv[2:5]
    batch_ids: list[str] = json.loads(sys.stdin.read())
    began_s = time.process_time()
    run = shared if how == "shared" else each_its_own
    asyncio.run(run(batch_ids, int(count), float(seconds)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"cpu_s": time.process_time() - began_s, "peak_mb": used.ru_maxrss / 1024}
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 500, 1000])
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from batchrouter.testing import FaultProxy, running_router
    from on_airflow.lanes import lane

    config: dict[str, Any] = {
        "credits": {"initial_usd": "100000"},
        "lanes": [lane("endless", 36_000)],
    }
    print("| waits | how | requests a minute | CPU a minute (s) | peak memory (MB) |")
    print("| ---: | --- | ---: | ---: | ---: |")
    with (
        tempfile.TemporaryDirectory() as home,
        running_router(config=config) as router,
        FaultProxy(router.base_url) as proxy,
    ):
        batch_ids = bought(router, 20)
        extra = {"poll_interval_s": str(POLL_S)}
        fields = {"conn_type": "batchrouter", "host": proxy.base_url, "password": router.api_key}
        connection = json.dumps({**fields, "extra": extra})
        env = {
            **os.environ,
            "AIRFLOW_HOME": home,
            "AIRFLOW_CONN_BATCHROUTER_DEFAULT": connection,
        }
        for count in asked.counts:
            for how in ("shared", "each its own"):
                before = len(proxy.seen)
                done = subprocess.run(
                    [sys.executable, __file__, "--measured", how, str(count), str(asked.seconds)],
                    input=json.dumps(batch_ids),
                    env=env,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                told = json.loads(done.stdout.strip().splitlines()[-1])
                minutes = asked.seconds / 60
                requests = (len(proxy.seen) - before) / minutes
                print(
                    f"| {count} | {how} | {requests:.0f} | {told['cpu_s'] / minutes:.1f} |"
                    f" {told['peak_mb']:.0f} |",
                    flush=True,
                )


def bought(router: Any, count: int) -> list[str]:
    """Batches that waits share: what a wait costs does not hang on whose batch it is for."""
    from batchrouter import Client

    with Client(router.settings()) as client:
        return [_buy(client, number) for number in range(count)]


def _buy(client: Any, number: int) -> str:
    quote = client.quote_model("endless", estimated_items=1, max_output_tokens=8)
    line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/responses",
            "body": {"input": "hello", "max_output_tokens": 8}}  # fmt: skip
    body = {"quote_id": quote.quote_id, "items": [line]}
    return client.submit_batch(body, idempotency_key=f"bench-waits-{number}").id


if __name__ == "__main__":
    measured() if sys.argv[1:2] == ["--measured"] else main()
