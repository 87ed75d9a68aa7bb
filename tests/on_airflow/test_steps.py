"""The steps apart, the sensor between them, and a decorated function, on the embedded router."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from airflow_provider_batchrouter.decorators import BatchrouterDecoratedOperator
from airflow_provider_batchrouter.operators import (
    BatchrouterCancelOperator,
    BatchrouterLandOperator,
    BatchrouterQuoteOperator,
    BatchrouterRunJobOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.sensors import BatchrouterBatchSensor

from batchrouter import Client
from batchrouter.errors import WaitTimeoutError
from batchrouter.testing import RunningRouter
from on_airflow.tasks import Task, deferral, fired, to_the_end

pytestmark = pytest.mark.usefixtures("connect")


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Any:
    return Task(task_id="step", run_id=request.node.name).context


@pytest.fixture
def slow(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "route": {"models": ["long"]}}


def submit(job: Any, context: Any) -> dict[str, Any]:
    return BatchrouterSubmitOperator(task_id="submit", job=job).execute(context)


def test_quote_submit_wait_and_land_share_one_run(
    job: dict[str, Any], context: Any, tmp_path: Path
) -> None:
    quote = BatchrouterQuoteOperator(task_id="quote", job=job).execute(context)
    told = submit(job, context)
    sensor = BatchrouterBatchSensor(task_id="wait", submission=told, deferrable=True)
    defers = deferral(sensor.execute, context)
    states = sensor.execute_complete(context, fired(defers.trigger))
    receipt = BatchrouterLandOperator(task_id="land", job=job).execute(context)

    assert quote["fits"]
    assert quote["item_count"] == 12
    assert quote["run_key"] == told["run_key"] == receipt["run_key"]
    assert states == {told["batch_ids"][0]: "succeeded"}
    assert ds.dataset(tmp_path / "labelled", format="parquet").count_rows() == 12
    assert max(len(json.dumps(each)) for each in (quote, told, receipt)) < 2_000


@pytest.mark.parametrize(
    ("what", "error"), [("skip", AirflowSkipException), ("fail", AirflowFailException)]
)
def test_a_price_above_the_budget_gates(
    job: dict[str, Any], context: Any, what: Any, error: type[Exception]
) -> None:
    cheap = {"job": job, "budget": "0.00000001"}

    told = BatchrouterQuoteOperator(task_id="quote", **cheap).execute(context)
    assert told["fits"] is False
    with pytest.raises(error, match="above the budget"):
        BatchrouterQuoteOperator(task_id="quote", on_over_budget=what, **cheap).execute(context)


def test_landing_what_has_not_ended_may_be_retried(slow: dict[str, Any], context: Any) -> None:
    submit(slow, context)

    with pytest.raises(WaitTimeoutError, match="has not ended"):
        BatchrouterLandOperator(task_id="land", job=slow).execute(context)


def test_a_teardown_cancels_what_is_open_and_nothing_else(
    slow: dict[str, Any], context: Any, router: RunningRouter
) -> None:
    cancel = BatchrouterCancelOperator(task_id="clean_up", job_name="label")
    assert cancel.execute(context) is False  # it was never opened
    [batch_id] = submit(slow, context)["batch_ids"]

    assert cancel.execute(context) is True

    with Client(router.settings()) as client:
        assert client.retrieve_batch(batch_id).state in {"cancelling", "cancelled"}


def test_a_teardown_finds_the_run_of_a_whole_job(slow: dict[str, Any], context: Any) -> None:
    label = BatchrouterRunJobOperator(task_id="step", job=slow, deferrable=True)
    deferral(label.execute, context)
    clean_up = BatchrouterCancelOperator(task_id="clean_up", job_name="label", of_task="step")
    other = Task(task_id="clean_up", run_id=context["run_id"])

    assert clean_up.execute(other.context) is True


def test_the_sensor_pokes_without_a_triggerer(slow: dict[str, Any], context: Any) -> None:
    told = submit(slow, context)
    sensor = BatchrouterBatchSensor(task_id="wait", batch_id=told["batch_ids"])

    assert sensor.poke(context).is_done is False


def test_the_sensor_fails_on_a_batch_that_was_cancelled_unless_told_otherwise(
    slow: dict[str, Any], context: Any
) -> None:
    told = submit(slow, context)
    BatchrouterCancelOperator(task_id="clean_up", job_name="label").execute(context)
    lenient = BatchrouterBatchSensor(
        task_id="wait", submission=told, fail_on=(), deferrable=True, timeout=30
    )
    states: Any = {}
    while states != {told["batch_ids"][0]: "cancelled"}:
        try:
            states = lenient.execute(context)
        except TaskDeferred as defers:
            states = lenient.execute_complete(context, fired(defers.trigger))

    assert states == {told["batch_ids"][0]: "cancelled"}
    strict = BatchrouterBatchSensor(task_id="wait", submission=told)
    with pytest.raises(AirflowFailException, match="is cancelled"):
        strict.poke(context)


@pytest.mark.parametrize(
    ("soft_fail", "error"), [(False, AirflowTaskTimeout), (True, AirflowSkipException)]
)
def test_a_sensor_whose_time_is_over(
    slow: dict[str, Any], context: Any, error: type[Exception], *, soft_fail: bool
) -> None:
    told = submit(slow, context)
    sensor = BatchrouterBatchSensor(
        task_id="wait", submission=told, deferrable=True, timeout=0.2, soft_fail=soft_fail
    )
    defers = deferral(sensor.execute, context)

    assert datetime.fromisoformat(defers.trigger.until) - datetime.now(UTC) < timedelta(seconds=1)
    with pytest.raises(error, match="not ended within"):
        sensor.execute_complete(context, fired(defers.trigger))


@pytest.mark.parametrize("told", [{}, "batch_1", {"batch_ids": []}])
def test_a_submission_that_tells_nothing_is_refused(context: Any, told: Any) -> None:
    with pytest.raises(AirflowFailException, match="not what a submission tells"):
        BatchrouterBatchSensor(task_id="wait", submission=told).poke(context)


@pytest.mark.parametrize("as_path", [False, True])
def test_a_decorated_function_is_called_once_over_retries(
    job: dict[str, Any], context: Any, tmp_path: Path, *, as_path: bool
) -> None:
    calls: list[int] = []

    def rows(first: int) -> Any:
        calls.append(first)
        ids = list(range(first, first + 3))
        table = pa.table({"id": ids, "text": [f"row {number}" for number in ids]})
        if not as_path:
            return table
        pq.write_table(table, tmp_path / "made.parquet")
        return tmp_path / "made.parquet"

    def make() -> Any:
        without_source = {name: value for name, value in job.items() if name != "source"}
        return BatchrouterDecoratedOperator(
            task_id="step",
            python_callable=rows,
            op_args=[7],
            job={**without_source, "params": {}},
            deferrable=True,
        )

    deferral(make().execute, context)
    receipt = to_the_end(make, context["ti"].retried())

    assert receipt["rows"]["succeeded"] == 3
    assert calls == [7]
    landed = ds.dataset(tmp_path / "labelled", format="parquet").to_table()
    assert sorted(landed.column("id").to_pylist()) == [7, 8, 9]


def test_a_function_that_returns_no_table_is_told_so(job: dict[str, Any], context: Any) -> None:
    operator = BatchrouterDecoratedOperator(
        task_id="step", python_callable=lambda: 42, job={**job, "params": {}}
    )

    with pytest.raises(AirflowFailException, match="returned int; return a table"):
        operator.execute(context)
