"""Whole jobs on a real Airflow, its DAGs started through the REST API, the router beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from on_airflow.airflow_processes import Airflow
from on_airflow.stage import Stage, running_stage

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


def test_jobs_by_webhook_in_steps_and_by_an_ended_batch(stage: Stage) -> None:
    airflow = stage.airflow
    pushed = airflow.trigger("pushed")
    steps = airflow.trigger("steps")

    airflow.wait_for_run("pushed", pushed)
    airflow.wait_for_run("steps", steps)
    stage.wait_for_watching_run()

    assert stage.landed_ids("quick") == list(range(20))
    assert stage.landed_ids("steps") == list(range(20))
    receipt = airflow.xcom("pushed", pushed, "label")
    assert receipt["rows"]["succeeded"] == 20
    assert len(json.dumps(receipt)) < 2_000
    assert airflow.xcom("steps", steps, "quote")["fits"] is True
    assert airflow.xcom("steps", steps, "clean_up") is False
    assert len(stage.batches("pushed")) == len(stage.batches("steps")) == 1
    told = stage.watched()
    assert [each["run_key"] for each in told] == [f"steps/{steps}"]
    assert_no_secret(stage, airflow)


def assert_no_secret(stage: Stage, airflow: Airflow) -> None:
    """The key and the webhook secret stand in no log and no run folder."""
    places = [*airflow.home.rglob("*.log"), *stage.runs.rglob("*.json")]
    assert places
    for path in places:
        text = path.read_text(errors="replace")
        for secret in (stage.router.api_key, stage.webhook_secret):
            assert secret not in text, f"a secret stands in {path}"


@pytest.mark.drill
@pytest.mark.parametrize("wait", ["poll", "webhook"])
@pytest.mark.parametrize(
    ("job", "row_count"),
    [("quick", 20), pytest.param("banking77", 10_003, marks=pytest.mark.shared_data)],
)
def test_a_whole_table_is_labelled_by_polling_and_by_webhook(
    stage: Stage, job: str, row_count: int, wait: str
) -> None:
    dag_id = f"{job}_by_{wait}"
    run_id = stage.airflow.trigger(dag_id)

    stage.airflow.wait_for_run(dag_id, run_id, timeout_s=400)

    [batch] = stage.batches(dag_id, run_id)
    assert batch.state == "succeeded"
    receipt = stage.airflow.xcom(dag_id, run_id, "label")
    assert receipt["row_count"] == receipt["rows"]["succeeded"] == row_count
    landed = stage.landed_keys(job, f"{dag_id}/label/{run_id}")
    assert len(landed) == len(set(landed)) == row_count


@pytest.mark.drill
def test_every_row_of_each_partition_lands_once_for_mapped_tasks(stage: Stage) -> None:
    run_id = stage.airflow.trigger("mapped")

    stage.airflow.wait_for_run("mapped", run_id)

    assert len(stage.batches("mapped")) == 3
    assert len(stage.landed_ids("quick", run_key=f"mapped/label/{run_id}")) == 60


@pytest.mark.drill
def test_the_function_of_a_decorated_task_is_called_once(stage: Stage) -> None:
    run_id = stage.airflow.trigger("decorated")

    stage.airflow.wait_for_run("decorated", run_id)

    assert stage.landed_ids("in-memory") == [10, 11, 12, 13, 14]
    assert stage.calls.read_text() == "called\n"


@pytest.mark.drill
def test_an_asset_alias_has_the_table_with_its_counts(stage: Stage) -> None:
    run_id = stage.airflow.trigger("whole")

    stage.airflow.wait_for_run("whole", run_id)

    told: dict[str, Any] = stage.airflow.call("GET", "/api/v2/assets/events?limit=100")
    mine = [
        each
        for each in told["asset_events"]
        if each["source_dag_id"] == "whole" and each["source_run_id"] == run_id
    ]
    [event] = [each for each in mine if each["extra"]]
    assert event["extra"]["row_count"] == 20
    assert event["uri"] == Path(stage.jobs["quick"]["sink"]).as_uri()
    links = stage.airflow.call(
        "GET", f"/api/v2/dags/whole/dagRuns/{run_id}/taskInstances/label/links"
    )
    assert links["extra_links"]["Batch"].startswith(stage.proxy.base_url)


@pytest.mark.drill
def test_a_task_of_common_ai_is_bought_and_answered_through_us(stage: Stage) -> None:
    before = batch_count(stage)
    run_id = stage.airflow.trigger("common_ai")

    stage.airflow.wait_for_run("common_ai", run_id)

    told = stage.airflow.xcom("common_ai", run_id, "ask")
    rows = Path(told["result_uri"].removeprefix("file://")).read_text().splitlines()
    assert told["counts"]["succeeded"] == 7
    assert sorted(json.loads(row)["index"] for row in rows) == list(range(7))
    assert batch_count(stage) == before + 1


def batch_count(stage: Stage) -> int:
    with Client(stage.router.settings()) as client:
        return len(client.list_batches(limit=1000).data)
