"""Five hundred flow runs asleep: what they hold, and what one sweep of them costs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Suspended
from prefect_batchrouter import BatchrouterCredentials, sweep_suspended_runs
from prefect_batchrouter.blocking import blocking
from prefect_batchrouter.suspending import WAITING_TAG, batch_tag, new_pause_key

from batchrouter import Client, Settings
from batchrouter.testing import RunningRouter
from on_prefect.stage import until

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("harness")]

SLEEPERS, ENDED = 500, 50
Answer = TypeVar("Answer")
ITEM = {
    "customer_item_id": "a",
    "operation": "responses",
    "input": {"input": "Say hello", "max_output_tokens": 16},
}


@flow
def sleeping() -> None: ...


def buy(settings: Settings) -> list[str]:
    """Buy batches that end at once, and one on the long lane that all other sleepers wait for."""
    with Client(settings) as client:

        def one(model: str) -> str:
            quote = client.quote_model(model, estimated_items=1, max_output_tokens=16)
            return client.submit_batch({"quote_id": quote.quote_id, "items": [ITEM]}).id

        return [*(one("quick") for _ in range(ENDED)), *[one("long")] * (SLEEPERS - ENDED)]


async def put_to_sleep(deployment_id: UUID, batch_ids: list[str]) -> None:
    """One after another, and again while the test server's SQLite is busy."""
    async with get_client() as client:
        for batch_id in batch_ids:
            tags = [WAITING_TAG, batch_tag(batch_id)]
            made = await while_busy(
                partial(client.create_flow_run_from_deployment, deployment_id, tags=tags)
            )
            state = Suspended(timeout_seconds=3600, pause_key=new_pause_key())
            await while_busy(partial(client.set_flow_run_state, made.id, state, force=True))


async def while_busy(ask: Callable[[], Awaitable[Answer]], tries: int = 10) -> Answer:
    """Ask until the answer is none of 503."""
    for _ in range(tries - 1):
        try:
            return await ask()
        except PrefectHTTPStatusError as error:
            if error.response.status_code != 503:
                raise
        await asyncio.sleep(1)
    return await ask()


def test_five_hundred(slow_router: RunningRouter) -> None:
    deployment_id = blocking(blocking(sleeping.to_deployment)("sleepers").apply)()
    batch_ids = buy(slow_router.settings())
    asyncio.run(put_to_sleep(deployment_id, batch_ids))

    def all_ended() -> bool:
        with Client(slow_router.settings()) as client:
            return all(client.retrieve_batch(each).is_terminal for each in batch_ids[:ENDED])

    until(all_ended, "the ends of the quick batches")
    account = BatchrouterCredentials(base_url=slow_router.base_url, api_key=slow_router.api_key)

    began_s, cpu_s = time.perf_counter(), time.process_time()
    told = asyncio.run(sweep_suspended_runs(account))
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    print(f"\n{told}; {took_s:.1f} s, {used_s:.2f} CPU s")

    assert told == {
        "suspended": SLEEPERS,
        "ended": ENDED,
        "resumed": ENDED,
        "abandoned": 0,
        "requests": 1,
    }
    again = asyncio.run(sweep_suspended_runs(account))
    assert again == {
        "suspended": SLEEPERS - ENDED,
        "ended": 0,
        "resumed": 0,
        "abandoned": 0,
        "requests": 1,
    }
