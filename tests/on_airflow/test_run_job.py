"""The whole job in one task, on the embedded router: bought once, whatever happens to the task."""

import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow.dataset as ds
import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import BaseSerialization
from airflow_provider_batchrouter.operators import BatchrouterRunJobOperator

from batchrouter import Client
from batchrouter.errors import TransportError
from batchrouter.testing import FaultProxy, RunningRouter
from on_airflow.tasks import Task, deferral, fired, to_the_end

pytestmark = pytest.mark.usefixtures("connect")


def operator(job: Any, **options: Any) -> BatchrouterRunJobOperator:
    return BatchrouterRunJobOperator(task_id="label", job=job, **{"deferrable": True, **options})


def batches(router: RunningRouter, task: Task) -> list[Any]:
    with Client(router.settings()) as client:
        page = client.list_batches(limit=200)
    key = f"{task.dag_id}/{task.task_id}/{task.run_id}"
    return [each for each in page.data if each.metadata.get("batchrouter_run_key") == key]


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    return Task(run_id=f"manual__{request.node.name}")


def test_a_deferred_task_lands_the_table_and_returns_a_small_receipt(
    job: dict[str, Any], task: Task, router: RunningRouter, tmp_path: Path
) -> None:
    receipt = to_the_end(lambda: operator(job), task)

    landed = ds.dataset(tmp_path / "labelled", format="parquet").to_table()
    assert sorted(landed.column("id").to_pylist()) == list(range(12))
    assert receipt["rows"]["succeeded"] == 12
    assert len(json.dumps(receipt)) < 2_000
    assert len(batches(router, task)) == 1
    assert task.pushed["run"]["batch_ids"] == receipt["batch_ids"]
    assert task.pushed["batchrouter_batch"].endswith(receipt["batch_ids"][0])


def test_a_task_that_waits_itself_lands_it_as_well(job: dict[str, Any], task: Task) -> None:
    receipt = operator(job, deferrable=False).execute(task.context)

    assert receipt["rows"]["succeeded"] == 12


def test_a_retry_goes_on_with_the_batch_that_is_there(
    job: dict[str, Any], task: Task, router: RunningRouter
) -> None:
    deferral(operator(job).execute, task.context)
    retried = task.retried()

    receipt = to_the_end(lambda: operator(job), retried)

    assert receipt["rows"]["succeeded"] == 12
    assert len(batches(router, task)) == 1


def test_a_clear_of_a_landed_task_buys_nothing_and_rebuy_buys_once_for_each_clear(
    job: dict[str, Any], task: Task, router: RunningRouter
) -> None:
    to_the_end(lambda: operator(job), task)

    assert operator(job).execute(task.cleared().context)["outcome"] == "landed"
    assert len(batches(router, task)) == 1
    cleared = task.cleared()
    to_the_end(lambda: operator(job, on_rerun="rebuy"), cleared)
    assert operator(job, on_rerun="rebuy").execute(cleared.retried().context)["generation"] == 1
    assert len(batches(router, task)) == 2


def test_the_trigger_holds_ids_only_and_comes_back_whole(job: dict[str, Any], task: Task) -> None:
    defers = deferral(operator(job, timeout=60).execute, task.context)
    path, kwargs = defers.trigger.serialize()

    stored = json.dumps(BaseSerialization.serialize(kwargs))
    module, _, name = path.rpartition(".")
    again = resolve_name(f"{module}:{name}")(**BaseSerialization.deserialize(json.loads(stored)))

    assert again.serialize() == (path, kwargs)
    assert "{text}" not in repr(again)
    assert "bk_" not in repr(again)
    assert defers.timeout.total_seconds() > 60
    assert fired(again)["status"] == "ended"


@pytest.mark.parametrize("event", [None, {}, {"batch_ids": []}])
def test_an_event_that_says_nothing_is_refused(job: dict[str, Any], task: Task, event: Any) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        operator(job).execute_complete(task.context, event)


@pytest.mark.parametrize(
    "event",
    [
        {"status": "ended"},
        {"status": "deadline"},
        {"status": "error", "code": "unauthorized", "message": "the key is revoked"},
    ],
)
def test_every_event_is_only_a_hint(job: dict[str, Any], task: Task, event: Any) -> None:
    job["route"] = {"models": ["long"]}
    first = deferral(operator(job).execute, task.context)

    again = deferral(operator(job).execute_complete, task.context, event)

    assert again.method_name == "execute_complete"
    assert again.trigger.batch_ids == first.trigger.batch_ids


def test_what_a_retry_cannot_cure_fails_for_good(
    job: dict[str, Any], task: Task, router: RunningRouter, connect: Any
) -> None:
    with pytest.raises(AirflowFailException, match="budget_exceeded"):
        operator(job, budget="0.00000001").execute(task.context)
    with pytest.raises(AirflowFailException, match=r"job_invalid.*no parameter 'dya'"):
        operator(job, job_params={"dya": "1"}).execute(task.context)
    connect(password="bk_live_unknown")
    with pytest.raises(AirflowFailException, match="unauthorized") as error:
        operator(job).execute(task.context)
    assert "bk_live_unknown" not in str(error.value)
    assert batches(router, task) == []


def test_a_time_that_is_over_fails_for_good_and_leaves_or_cancels(
    job: dict[str, Any], task: Task, router: RunningRouter
) -> None:
    slow = {**job, "route": {"models": ["long"]}}
    [batch_id] = deferral(operator(slow).execute, task.context).trigger.batch_ids
    with pytest.raises(AirflowFailException, match="Clear the task to land what came"):
        operator(slow, timeout=0.001).execute_complete(task.context, {"status": "deadline"})
    with Client(router.settings()) as client:
        assert client.retrieve_batch(batch_id).state not in {"cancelling", "cancelled"}
    with pytest.raises(AirflowFailException, match="asked to cancel"):
        operator(slow, timeout=0.001, on_timeout="cancel").execute_complete(
            task.context, {"status": "deadline"}
        )

    [batch] = batches(router, task)
    assert batch.state in {"cancelling", "cancelled"}


def test_a_larger_share_of_failed_rows_fails_the_task_after_landing(
    job: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    job["request"]["output"] = {"label": {"type": "string", "enum": ["a", "b"]}}
    receipt = to_the_end(lambda: operator(job), task)
    assert receipt["rows"]["succeeded"] == 12  # simulated lanes are true to the schema

    with pytest.raises(AirflowFailException, match="more than max_failed_share=-1"):
        operator(job, max_failed_share=-1).execute(task.cleared().context)
    assert (tmp_path / "labelled").is_dir()


def test_a_job_file_is_found_beside_the_dag_file(
    job: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job))
    dag = type("ADag", (), {"fileloc": str(tmp_path / "dag.py")})
    context = {**task.context, "dag": dag}

    defers = deferral(operator("job.json", job_params={"day": "1"}).execute, context)

    assert defers.trigger.run_names["job"] == "label"


def test_a_table_behind_an_airflow_connection_is_landed(
    job: dict[str, Any], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lake.db"
    path.touch()
    fields = {"conn_type": "sqlite", "host": str(path)}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields))

    to_the_end(lambda: operator({**job, "sink": "sqlite:warehouse#labels"}), task)

    with closing(sqlite3.connect(path)) as database:
        landed = database.execute("select id from labels order by id").fetchall()
    assert landed == [(number,) for number in range(12)]
    assert "BATCHROUTER_CONNECTION_WAREHOUSE" not in os.environ


def test_two_map_indexes_are_two_runs(job: dict[str, Any], task: Task) -> None:
    task.map_index = 0
    first = deferral(operator(job).execute, task.context)
    task.map_index = 1
    second = deferral(operator(job).execute, task.context)

    assert first.trigger.run_names["run_key"] == f"nightly/label/{task.run_id}/0"
    assert second.trigger.batch_ids != first.trigger.batch_ids


def test_a_round_that_resends_what_failed_defers_again(
    job: dict[str, Any], task: Task, router: RunningRouter
) -> None:
    job |= {"route": {"models": ["flaky"]}, "retry_failed": 1}

    receipt = to_the_end(lambda: operator(job), task)

    assert len(batches(router, task)) == 2
    assert sum(receipt["rows"].values()) == 12
    assert receipt["rows"]["failed"] < 12


def test_a_router_that_is_away_is_waited_for_once_something_is_bought(
    job: dict[str, Any], task: Task, router: RunningRouter, connect: Any
) -> None:
    with FaultProxy(router.base_url) as proxy:
        connect(host=proxy.base_url, extra={"max_attempts": 1})
        job["route"] = {"models": ["long"]}
        deferral(operator(job).execute, task.context)
        proxy.go_away()

        away = deferral(operator(job).execute_complete, task.context, {"status": "ended"})
        hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        with pytest.raises(TransportError):
            operator(job).execute_complete(
                task.context, {"status": "deadline", "failing_since": hour_ago}
            )
        proxy.come_back()
        back = deferral(operator(job).execute_complete, task.context, {"status": "deadline"})

    assert away.trigger.batch_ids == []
    assert set(away.trigger.passed_on) == {"failing_since"}
    assert len(back.trigger.batch_ids) == 1


def test_a_router_that_is_away_before_anything_is_bought_is_airflows_retry(
    job: dict[str, Any], task: Task, connect: Any
) -> None:
    connect(host="http://127.0.0.1:9", extra={"max_attempts": 1})

    with pytest.raises(TransportError):
        operator(job).execute(task.context)
