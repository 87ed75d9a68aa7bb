"""The webhook end of the api-server, its inbox, and what wakes by it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow_provider_batchrouter.operators import BatchrouterRunJobOperator
from airflow_provider_batchrouter.plugin import BatchrouterPlugin, WebhookApp
from airflow_provider_batchrouter.polling import wait_for_batches
from airflow_provider_batchrouter.triggers import BatchrouterEventTrigger

from batchrouter.testing import RunningRouter
from batchrouter.webhooks.inbox import open_inbox
from batchrouter.webhooks.signing import mint_secret, sign
from on_airflow.tasks import Task, deferral

SECRET = mint_secret()


def delivery(event_id: str = "evt_1", batch_id: str = "batch_1") -> bytes:
    fields = {
        "id": event_id,
        "type": "batch.completed",
        "created": int(time.time()),
        "data": {"batch_id": batch_id, "state": "succeeded"},
    }
    return json.dumps(fields).encode()


def post(app: Any, path: str, body: bytes, secret: str = SECRET) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
            headers = sign(secret, body, event_id="evt_1", timestamp=int(time.time()))
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(send())


@pytest.fixture
def inbox_url(connect: Any, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/inbox.db"
    connect(extra={"inbox_url": url, "webhook_secret": SECRET})
    return url


def test_a_signed_delivery_is_kept_and_a_strangers_is_not(inbox_url: str) -> None:
    app = WebhookApp()
    path = "/batchrouter/webhooks/batchrouter_default"

    assert post(app, path, delivery()).status_code == 204
    assert post(app, path, delivery()).status_code == 204
    assert post(app, path, delivery("evt_2"), mint_secret()).status_code == 401
    assert post(app, "/batchrouter/webhooks", delivery("evt_1")).status_code == 204

    events, _ = open_inbox(inbox_url).events_since(None)
    assert [each.id for each in events] == ["evt_1"]


@pytest.mark.usefixtures("inbox_url")
def test_only_connections_that_the_configuration_names_are_served() -> None:
    reply = post(WebhookApp(), "/batchrouter/webhooks/another_connection", delivery())

    assert reply.status_code == 404


def test_without_a_secret_nothing_is_received(connect: Any, caplog: Any) -> None:
    connect()

    reply = post(WebhookApp(), "/batchrouter/webhooks/batchrouter_default", delivery())

    assert reply.status_code == 503
    assert "no webhook_secret" in caplog.text


def test_the_plugin_mounts_it_under_a_prefix_that_airflow_takes() -> None:
    [mounted] = BatchrouterPlugin.fastapi_apps

    assert mounted["url_prefix"] == "/batchrouter"


def test_without_an_inbox_no_task_waits_for_webhooks(job: dict[str, Any], connect: Any) -> None:
    connect()
    operator = BatchrouterRunJobOperator(task_id="label", job=job, wait="webhook")

    with pytest.raises(Exception, match="wait='webhook' needs"):
        operator.execute(Task(run_id="no-inbox").context)


def test_many_waits_share_one_list_request_an_interval(
    job: dict[str, Any], router: RunningRouter, connect: Any
) -> None:
    from batchrouter.testing import FaultProxy

    with FaultProxy(router.base_url) as proxy:
        connect(host=proxy.base_url, extra={"poll_interval_s": "1"})
        job["route"] = {"models": ["long"]}
        operator = BatchrouterRunJobOperator(task_id="label", job=job, deferrable=True)
        [batch_id] = deferral(operator.execute, Task(run_id="many").context).trigger.batch_ids
        lists = proxy.count("GET", "/v1/batches")

        asyncio.run(_wait_often(batch_id, 300, seconds_s=4))

        assert proxy.count("GET", "/v1/batches") - lists <= 16  # a young wait asks more often
        assert proxy.count("GET", f"/v1/batches/{batch_id}") <= 2


async def _wait_often(batch_id: str, count: int, *, seconds_s: float) -> None:
    from datetime import UTC, datetime, timedelta

    until = datetime.now(UTC) + timedelta(seconds=seconds_s)
    waits = [
        wait_for_batches("batchrouter_default", [batch_id], until=until, mode="poll")
        for _ in range(count)
    ]
    slowest_s, began_s = 0.0, time.monotonic()
    gathered = asyncio.gather(*waits)
    while not gathered.done():
        await asyncio.sleep(0.05)
        slowest_s = max(slowest_s, time.monotonic() - began_s - 0.05)
        began_s = time.monotonic()
    assert not any(gathered.result())


def test_an_ended_batch_is_told_once_over_restarts_of_the_trigger(
    job: dict[str, Any], connect: Any
) -> None:
    connect(extra={"poll_interval_s": "0.3"})
    trigger = BatchrouterEventTrigger(job="label")
    path, kwargs = trigger.serialize()
    assert path == "airflow_provider_batchrouter.triggers.BatchrouterEventTrigger"
    assert BatchrouterEventTrigger(**kwargs).serialize() == (path, kwargs)

    async def first(trigger: BatchrouterEventTrigger, timeout_s: float) -> Any:
        events = trigger.run()
        try:
            async with asyncio.timeout(timeout_s):
                told = (await anext(events)).payload
                waits = asyncio.ensure_future(anext(events))
                await asyncio.sleep(1)  # what was told is written down when it is resumed
                waits.cancel()
                await asyncio.gather(waits, return_exceptions=True)
                return told
        except TimeoutError:
            return None
        finally:
            await events.aclose()

    assert asyncio.run(first(trigger, 2)) is None  # it begins with what ends from now on
    operator = BatchrouterRunJobOperator(task_id="label", job=job, deferrable=True)
    [batch_id] = deferral(operator.execute, Task(run_id="told").context).trigger.batch_ids
    told = asyncio.run(first(BatchrouterEventTrigger(**kwargs), 30))
    again = asyncio.run(first(BatchrouterEventTrigger(**kwargs), 3))

    assert told["batch_id"] == batch_id
    assert told["run_key"] == "nightly/label/told"
    assert again is None
