"""What breaks in a night, on a real Airflow: each time one batch, one row a key, the same table."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from on_airflow.stage import ROWS, Stage, running_stage

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1500)]

PURCHASE = "/v1/batches"
ARTIFACT = "*/artifact*"
OF_THIS_RUN = ("_batch_id", "_run_key", "_completed_at")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(autouse=True)
def _no_rules_of_another_drill(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("stage").proxy.forget_rules()


@pytest.fixture(scope="module")
def undisturbed(stage: Stage) -> pa.Table:
    run_id = stage.airflow.trigger("long")
    stage.airflow.wait_for_run("long", run_id)
    return table_of(stage, "long", run_id)


def table_of(stage: Stage, dag_id: str, run_id: str) -> pa.Table:
    landed = stage.landed("long", f"{dag_id}/label/{run_id}")
    return landed.sort_by("id").drop_columns(list(OF_THIS_RUN))


def check(stage: Stage, undisturbed: pa.Table, dag_id: str, run_id: str) -> None:
    stage.airflow.wait_for_run(dag_id, run_id, timeout_s=240)
    assert [each.state for each in stage.batches(dag_id, run_id)] == ["succeeded"]
    landed = table_of(stage, dag_id, run_id)
    assert landed.num_rows == ROWS
    assert landed.equals(undisturbed)


def wait_for_request(stage: Stage, method: str, path: str, after: int) -> None:
    stage.proxy.wait_for(method, path, count=after + 1, timeout_s=90)


def kill_task(stage: Stage, *, with_worker: bool = False) -> None:
    """SIGKILL the process of the running task, and its worker, as the kernel would."""
    pid = int(stage.task_pid.read_text())
    worker = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if with_worker:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("dag_id", ["long", "blocking"])
@pytest.mark.parametrize("path", ["/v1/batches/input-manifests", PURCHASE], ids=["before", "after"])
def test_a_task_that_is_killed_around_its_purchase(
    stage: Stage, undisturbed: pa.Table, dag_id: str, path: str
) -> None:
    before = stage.proxy.count("POST", path)
    stage.proxy.delay("POST", path, seconds_s=60)
    run_id = stage.airflow.trigger(dag_id)
    wait_for_request(stage, "POST", path, before)
    time.sleep(1)  # the router has it by now; only its reply is on the way

    kill_task(stage)

    check(stage, undisturbed, dag_id, run_id)


def test_a_triggerer_that_is_killed(stage: Stage, undisturbed: pa.Table) -> None:
    run_id = stage.airflow.trigger("long")
    stage.airflow.wait_for_task("long", run_id, "label", "deferred")

    stage.airflow.kill_process("triggerer")
    time.sleep(2)
    stage.airflow.start_process("triggerer")

    check(stage, undisturbed, "long", run_id)


def test_a_router_that_restarts_in_mid_batch(stage: Stage, undisturbed: pa.Table) -> None:
    run_id = stage.airflow.trigger("long")
    stage.airflow.wait_for_task("long", run_id, "label", "deferred")

    stage.router.kill()
    time.sleep(3)
    stage.router.restart()

    check(stage, undisturbed, "long", run_id)


def test_a_task_that_is_cleared_while_deferred(stage: Stage, undisturbed: pa.Table) -> None:
    run_id = stage.airflow.trigger("long")
    stage.airflow.wait_for_task("long", run_id, "label", "deferred")

    stage.airflow.clear("long", run_id, "label")

    check(stage, undisturbed, "long", run_id)


def test_a_task_that_is_cleared_while_it_waits_itself(stage: Stage, undisturbed: pa.Table) -> None:
    run_id = stage.airflow.trigger("blocking")
    wait_for_batch(stage, "blocking", run_id)

    stage.airflow.clear("blocking", run_id, "label")

    check(stage, undisturbed, "blocking", run_id)


@pytest.mark.parametrize(
    ("dag_id", "state"),
    [("endless", "failed"), ("endless", "success"), ("endless_blocking", "failed")],
)
def test_a_task_that_a_person_ends_has_its_batch_cancelled(
    stage: Stage, dag_id: str, state: str
) -> None:
    run_id = stage.airflow.trigger(dag_id)
    wait_for_batch(stage, dag_id, run_id)
    wanted = "deferred" if dag_id == "endless" else "running"
    stage.airflow.wait_for_task(dag_id, run_id, "label", wanted)

    if wanted == "deferred":  # Airflow tells no trigger that has not started yet
        stage.airflow.wait_until(
            lambda: " starting" in stage.airflow.logs(dag_id, run_id, "label"),
            120,
            "the trigger to start",
        )
    stage.airflow.mark(dag_id, run_id, "label", state)

    def is_cancelled() -> bool:
        [batch] = stage.batches(dag_id, run_id)
        return batch.state in {"cancelling", "cancelled"}  # its items are at the provider already

    stage.airflow.wait_until(is_cancelled, 120, "the batch to be cancelled")


def test_a_worker_that_is_lost_before_it_has_landed(stage: Stage, undisturbed: pa.Table) -> None:
    before = stage.proxy.count("GET", ARTIFACT)
    stage.proxy.delay("GET", ARTIFACT, seconds_s=60)
    run_id = stage.airflow.trigger("long")
    wait_for_request(stage, "GET", ARTIFACT, before)

    kill_task(stage, with_worker=True)

    check(stage, undisturbed, "long", run_id)


def test_a_purchase_whose_reply_is_dropped(stage: Stage, undisturbed: pa.Table) -> None:
    stage.proxy.drop_reply("POST", PURCHASE, times=3)

    run_id = stage.airflow.trigger("long")

    check(stage, undisturbed, "long", run_id)


def wait_for_batch(stage: Stage, dag_id: str, run_id: str) -> Any:
    stage.airflow.wait_until(
        lambda: stage.batches(dag_id, run_id), 180, f"a batch of {dag_id} {run_id}"
    )
