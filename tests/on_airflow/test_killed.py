"""A task that is killed: which reasons cancel its batch, and which must not.

Why a task was killed only Airflow can say, over a socket of a real task or triggerer; here its
answer is put in its place, and the drills have the real one.
"""

import asyncio
import signal
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout
from airflow_provider_batchrouter import fate, killing
from airflow_provider_batchrouter.operators import (
    BatchrouterRunJobOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.triggers import BatchrouterBatchTrigger, batch

from batchrouter import Client
from batchrouter.testing import RunningRouter
from on_airflow.tasks import Task, deferral

pytestmark = pytest.mark.usefixtures("connect")


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    return Task(run_id=request.node.name)


@pytest.fixture
def operator(job: dict[str, Any]) -> BatchrouterRunJobOperator:
    slow = {**job, "route": {"models": ["long"]}}
    return BatchrouterRunJobOperator(task_id="label", job=slow, deferrable=True)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let Airflow say whether a person has ended the task; None when it does not tell."""
    monkeypatch.setattr(batch, "_GRACE_S", 0.05)

    def answer(*, decided: bool | None) -> None:
        monkeypatch.setattr(fate, "is_decided", lambda *_, **__: decided)
        monkeypatch.setattr(killing, "_is_ended_by_a_person", lambda: decided is True)

    return answer


def state_of(router: RunningRouter, batch_id: str) -> str:
    with Client(router.settings()) as client:
        return client.retrieve_batch(batch_id).state


@pytest.mark.parametrize(
    ("decided", "cancels"), [(True, True), (False, False), (None, True)],
    ids=["marked", "cleared", "not told"],
)  # fmt: skip
def test_a_deferred_task_that_is_killed(
    operator: BatchrouterRunJobOperator,
    task: Task,
    router: RunningRouter,
    says: Any,
    *,
    decided: bool | None,
    cancels: bool,
) -> None:
    says(decided=decided)
    trigger = deferral(operator.execute, task.context).trigger
    assert isinstance(trigger, BatchrouterBatchTrigger)

    asyncio.run(trigger.on_kill())

    is_cancelled = state_of(router, trigger.batch_ids[0]) in {"cancelling", "cancelled"}
    assert is_cancelled is cancels


def test_an_attempt_that_was_taken_over_cancels_nothing(
    operator: BatchrouterRunJobOperator, task: Task, router: RunningRouter, says: Any
) -> None:
    says(decided=None)
    old = deferral(operator.execute, task.context).trigger
    deferral(operator.execute, task.cleared().context)

    asyncio.run(old.on_kill())

    assert state_of(router, old.batch_ids[0]) not in {"cancelling", "cancelled"}


@pytest.mark.parametrize("decided", [True, False])
def test_a_running_task_that_is_killed(
    operator: BatchrouterRunJobOperator,
    task: Task,
    router: RunningRouter,
    says: Any,
    *,
    decided: bool,
) -> None:
    says(decided=decided)
    [batch_id] = deferral(operator.execute, task.context).trigger.batch_ids

    operator.on_kill()

    assert (state_of(router, batch_id) in {"cancelling", "cancelled"}) is decided


@pytest.mark.parametrize("decided", [True, False])
def test_a_submission_that_is_killed(
    job: dict[str, Any], task: Task, router: RunningRouter, says: Any, *, decided: bool
) -> None:
    says(decided=decided)
    slow = {**job, "route": {"models": ["long"]}}
    submit = BatchrouterSubmitOperator(task_id="submit", job=slow)
    [batch_id] = submit.execute(task.context)["batch_ids"]

    submit.on_kill()

    assert (state_of(router, batch_id) in {"cancelling", "cancelled"}) is decided


class TimesOut(BatchrouterRunJobOperator):
    """Its execution timeout comes as soon as it waits; Airflow's runner calls `on_kill` then."""

    def tell_of_batches(self, context: Any, run: Any) -> dict[str, Any]:
        told = super().tell_of_batches(context, run)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return told

    def run_as_airflow_does(self, context: Any) -> None:
        with timeout(150):
            try:
                self.execute(context)
            except AirflowTaskTimeout:
                self.on_kill()
                raise


# The alarm may come in the middle of an import, and leave its file to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("on_timeout", ["cancel", "leave"])
def test_an_execution_timeout_does_as_the_task_says(
    job: dict[str, Any], task: Task, router: RunningRouter, on_timeout: Any
) -> None:
    endless = {**job, "route": {"models": ["endless"]}}
    waits_itself = TimesOut(task_id="label", job=endless, on_timeout=on_timeout)

    with pytest.raises(AirflowTaskTimeout):
        waits_itself.run_as_airflow_does(task.context)

    [batch_id] = task.pushed["run"]["batch_ids"]
    assert (state_of(router, batch_id) in {"cancelling", "cancelled"}) is (on_timeout == "cancel")


def test_a_task_that_shall_not_be_cancelled_is_not(
    job: dict[str, Any], task: Task, router: RunningRouter, says: Any
) -> None:
    says(decided=True)
    operator = BatchrouterRunJobOperator(
        task_id="label",
        job={**job, "route": {"models": ["long"]}},
        deferrable=True,
        cancel_on_kill=False,
    )
    trigger = deferral(operator.execute, task.context).trigger

    operator.on_kill()
    asyncio.run(trigger.on_kill())

    assert state_of(router, trigger.batch_ids[0]) not in {"cancelling", "cancelled"}


@pytest.mark.parametrize(
    ("states", "decided"),
    [
        ({"label": "failed"}, True),
        ({"label": "success"}, True),
        ({"label": None}, False),
        ({"label": "scheduled"}, False),
        ({"label": "restarting"}, False),
        ({"label": "running"}, False),
        ({}, None),
    ],
)
def test_a_state_is_a_decision_or_none(states: dict[str, Any], *, decided: bool | None) -> None:
    assert fate._decided(states, "label", -1) is decided
    assert fate._decided({f"{name}_3": state for name, state in states.items()}, "label", 3) is (
        decided
    )


def test_a_cancel_goes_on_though_the_triggerer_cancels_it(
    operator: BatchrouterRunJobOperator, task: Task, router: RunningRouter, says: Any
) -> None:
    says(decided=True)
    trigger = deferral(operator.execute, task.context).trigger

    async def kill_twice() -> None:
        killing = asyncio.ensure_future(trigger.on_kill())
        await asyncio.sleep(0.01)
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        assert killing.cancelled()
        await asyncio.gather(*batch._ending)

    asyncio.run(kill_twice())

    assert state_of(router, trigger.batch_ids[0]) in {"cancelling", "cancelled"}
