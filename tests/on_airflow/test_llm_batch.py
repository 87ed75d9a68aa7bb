"""`@task.llm_batch` of common-ai over our adapter: bought once, each prompt answered or told of."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.ai.batch.dispatch import get_adapter_class
from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
from airflow_provider_batchrouter.llm_batch import BatchrouterBatchAdapter

from batchrouter import Client
from batchrouter.errors import BatchrouterError, TransportError
from batchrouter.testing import FaultProxy, RunningRouter
from on_airflow.tasks import Task, deferral, fired

pytestmark = pytest.mark.usefixtures("connect")

PROMPTS = [f"question {number}" for number in range(7)]


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    return Task(run_id=f"manual__{request.node.name}")


@pytest.fixture
def operator(tmp_path: Path) -> LLMBatchOperator:
    return LLMBatchOperator(
        task_id="label",
        requests=PROMPTS,
        llm_conn_id="batchrouter_default",
        model_id="batchrouter:quick",
        result_path=f"file://{tmp_path}/results",
        max_tokens=8,
        poll_interval=30,
        deferrable=True,
    )


def context_of(task: Task) -> Any:
    return {**task.context, "task_instance": task.context["ti"]}


def batch_count(router: RunningRouter) -> int:
    with Client(router.settings()) as client:
        return len(client.list_batches(limit=1000).data)


def wait_for_its_end(router: RunningRouter, batch_id: str) -> None:
    give_up_at = time.monotonic() + 90
    with Client(router.settings()) as client:
        while not client.retrieve_batch(batch_id).is_terminal:
            assert time.monotonic() < give_up_at
            time.sleep(0.2)


def test_its_dispatcher_finds_the_adapter() -> None:
    assert get_adapter_class("batchrouter", "batchrouter:quick") is BatchrouterBatchAdapter
    assert get_adapter_class("pydanticai", "batchrouter:quick") is BatchrouterBatchAdapter


def test_a_batch_is_bought_once_and_lands(
    operator: LLMBatchOperator, task: Task, router: RunningRouter
) -> None:
    before = batch_count(router)
    trigger: Any = deferral(operator.execute, context_of(task)).trigger
    wait_for_its_end(router, trigger.batch_id)
    event = fired(trigger)

    manifest = operator.execute_complete(context_of(task), event)
    again = operator.execute(context_of(task.cleared()))

    assert event["status"] == "success"
    assert manifest["counts"] == again["counts"]
    assert manifest["counts"]["succeeded"] == len(PROMPTS)
    rows = [
        json.loads(line)
        for line in Path(manifest["result_uri"].removeprefix("file://")).read_text().splitlines()
    ]
    assert sorted(each["index"] for each in rows) == list(range(len(PROMPTS)))
    assert all(each["output"] for each in rows)
    assert batch_count(router) == before + 1


def test_a_purchase_whose_reply_is_lost_is_found_again(
    operator: LLMBatchOperator, task: Task, router: RunningRouter, connect: Any
) -> None:
    before = batch_count(router)
    operator.model_id = "batchrouter:long"
    with FaultProxy(router.base_url) as proxy:
        connect(host=proxy.base_url)
        proxy.drop_reply("POST", "/v1/batches", times=100)
        with pytest.raises(TransportError):
            operator.execute(context_of(task))
        proxy.forget_rules()
        deferral(operator.execute, context_of(task.retried()))

    assert batch_count(router) == before + 1


def test_a_price_above_the_cap_is_not_paid(
    operator: LLMBatchOperator, task: Task, router: RunningRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = batch_count(router)
    monkeypatch.setenv("BATCHROUTER_MAX_RUN_USD", "0.00000001")

    with pytest.raises(BatchrouterError, match="max_price"):
        operator.execute(context_of(task))

    assert batch_count(router) == before


def test_a_task_that_is_killed_has_its_batch_cancelled(
    operator: LLMBatchOperator, task: Task, router: RunningRouter
) -> None:
    operator.model_id = "batchrouter:endless"
    trigger: Any = deferral(operator.execute, context_of(task)).trigger

    asyncio.run(trigger.on_kill())

    with Client(router.settings()) as client:
        assert client.retrieve_batch(trigger.batch_id).state in {"cancelling", "cancelled"}
