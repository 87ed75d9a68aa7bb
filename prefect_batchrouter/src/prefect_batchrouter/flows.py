"""The whole job as one flow: quote, buy, wait, land, and again while the run has more to do.

What happens in which order is written once, as a generator that yields what to do; the two
drivers below do it with and without an event loop. Between two waits nothing is kept: a resumed
flow run starts at the top, and the run's folder says where it is.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.context import FlowRunContext
from prefect.flow_runs import asuspend_flow_run, suspend_flow_run
from prefect.logging import get_run_logger

from batchrouter.errors import BatchrouterError, ConfigError, WaitTimeoutError
from prefect_batchrouter import steps
from prefect_batchrouter.cancelling import cancel_on_cancellation
from prefect_batchrouter.checking import check_places, has_sweeper
from prefect_batchrouter.planning import Account, JobLike, OnRerun, Plan, plan_of
from prefect_batchrouter.showing import show_receipt
from prefect_batchrouter.steps import LONGEST_WAIT, Told, seconds_to
from prefect_batchrouter.suspending import (
    Wait,
    choose_wait,
    new_pause_key,
    say_awake,
    say_run,
    say_waiting,
)
from prefect_batchrouter.tasks import (
    aadvance_run,
    advance_run,
    apoll_batches,
    aquote_job,
    poll_batches,
    quote_job,
)
from prefect_batchrouter.waiting import is_past


@dataclass(frozen=True, slots=True)
class _Call:
    """Something short that may ask a server."""

    action: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Step:
    """A task, and its async twin."""

    task: Callable[..., Any]
    atask: Callable[..., Any]
    given: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Nap:
    """Only time must pass, and not much."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Suspend:
    """Leave the process. A resumed flow run starts at the top."""

    timeout_s: int


_Act = _Call | _Step | _Nap | _Suspend
_Story = Generator[_Act, Any, Told]


@flow(name="run-batch-job", on_cancellation=[cancel_on_cancellation])
def run_batch_job(
    job: JobLike,
    credentials: Account = None,
    *,
    wait: Wait = "auto",
    run_key: str | None = None,
    params: dict[str, Any] | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Run a batch job from its table to its table.

    Args:
        job: The path of a job file, a mapping, a `Job` or a `BatchrouterJob` block.
        credentials: A `BatchrouterCredentials` block, the name of a saved one, or nothing for
            the job block's own, else the `BATCHROUTER_…` variables.
        wait: `suspend` frees the process while the batch runs; `poll` keeps it; `auto`
            suspends where that is possible and something would wake the flow run.
        run_key: What this execution is called. The same key never buys twice. Default: this
            flow run, and the parameters if there are any.
        params: Values for the job's parameters.
        runs_url: Where runs live; default: the account's.
        on_rerun: `resume` goes on; `rebuy` buys anew what has ended, once in each flow run.
        timeout_s: Give up waiting so long after the flow run's start; default: 72 hours.

    Returns:
        The receipt: rows by status, quoted and settled money, lanes, where the table is.

    Raises:
        BudgetExceededError: The price is above the budget; nothing was bought.
        ConfigError: `wait` is `suspend` where that is impossible; nothing was bought.
        BatchFailedError, RunCancelledError: There is nothing to land.
        WaitTimeoutError: The time has come; running the flow run again waits further.

    Example:
        >>> run_batch_job("label.yaml", credentials="prod")["rows"]      # doctest: +SKIP
        {'succeeded': 10003, 'failed': 0, ...}
    """
    return finish_run(**locals())


@flow(name="run-batch-job", on_cancellation=[cancel_on_cancellation])
async def arun_batch_job(
    job: JobLike,
    credentials: Account = None,
    *,
    wait: Wait = "auto",
    run_key: str | None = None,
    params: dict[str, Any] | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Do what `run_batch_job` does, without blocking the event loop."""
    return await afinish_run(**locals())


def finish_run(
    job: JobLike,
    credentials: Account = None,
    *,
    wait: Wait = "auto",
    run_key: str | None = None,
    params: Mapping[str, Any] | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    timeout_s: float | None = None,
    at_most_usd: str | None = None,
) -> Told:
    """Carry a run to its end in the body of a flow of your own, and not in a subflow or task.

    It is the body of `run_batch_job`, and may suspend your flow run. When that is resumed,
    your flow starts at the top: what stands before this call runs again, so let it be tasks
    with a cache policy, or cheap.

    Args:
        job: As `run_batch_job`, and so the next seven.
        credentials: As there.
        wait: As there.
        run_key: As there.
        params: As there.
        runs_url: As there.
        on_rerun: As there.
        timeout_s: As there.
        at_most_usd: The run may cost no more, such as the quote that a person approved.

    Returns:
        The receipt.

    Raises:
        BatchrouterError: As `run_batch_job`.
    """
    return _drive(_story(dict(locals())))


async def afinish_run(
    job: JobLike,
    credentials: Account = None,
    *,
    wait: Wait = "auto",
    run_key: str | None = None,
    params: Mapping[str, Any] | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    timeout_s: float | None = None,
    at_most_usd: str | None = None,
) -> Told:
    """Do what `finish_run` does, without blocking the event loop."""
    return await _adrive(_story(dict(locals())))


def _story(given: dict[str, Any]) -> _Story:
    wait, timeout_s = given.pop("wait"), given.pop("timeout_s")
    plan: Plan = yield _Call(partial(plan_of, **given))
    way, why = yield _Call(lambda: choose_wait(wait, plan, has_sweeper=has_sweeper()))
    told = "suspends while its batch runs" if way == "suspend" else "polls"
    get_run_logger().info("wait=%s: this flow run %s; %s", wait, told, why)
    yield _Call(lambda: check_places(plan))
    yield _Call(lambda: say_run(plan))
    if not (yield _Call(lambda: steps.has_bought(plan))):
        asked = ("job", "credentials", "params", "run_key", "runs_url")
        yield _Step(quote_job, aquote_job, {name: given[name] for name in asked})
    try:
        receipt = yield from _until_landed(plan, way, _end_at(timeout_s))
    except BatchrouterError:
        yield _Call(lambda: _wake_up(way))
        raise
    yield _Call(lambda: _wake_up(way))
    return receipt


def _until_landed(plan: Plan, way: str, end_at: datetime) -> _Story:
    announced: list[str] = []
    while True:
        told = yield _Step(advance_run, aadvance_run, {"plan": plan})
        if "receipt" in told:
            if not told["is_new"]:
                get_run_logger().info("run %s was landed before", plan.run_key)
                yield _Call(partial(show_receipt, plan, told["receipt"]))
            return told["receipt"]
        if is_past(end_at):
            raise WaitTimeoutError(
                f"run {plan.run_key!r} of {plan.job.name!r} still waits. It goes on at the "
                "router: run this flow run again to wait further."
            )
        batch_ids: list[str] = told["waiting"]["batch_ids"]
        look_again_at = min(end_at, datetime.fromisoformat(told["waiting"]["deadline_at"]))
        if not batch_ids:
            yield _Nap(seconds_to(look_again_at))
        elif way == "poll":
            given = {"plan": plan, "batch_ids": batch_ids, "until": look_again_at}
            yield _Step(poll_batches, apoll_batches, given)
        elif announced != batch_ids:
            # One more look after the tags: an end before them woke nobody.
            announced = batch_ids
            yield _Call(partial(_announce, batch_ids, look_again_at))
        else:
            yield _Suspend(int(seconds_to(end_at)) + 1)


def _drive(story: _Story) -> Told:
    answer: Any = None
    failure: BatchrouterError | None = None
    while True:
        try:
            # What the story does about a failure is an act like any other.
            act = story.send(answer) if failure is None else story.throw(failure)
        except StopIteration as end:
            return end.value
        answer = failure = None
        try:
            answer = _act(act)
        except BatchrouterError as error:
            failure = error


async def _adrive(story: _Story) -> Told:
    answer: Any = None
    failure: BatchrouterError | None = None
    while True:
        try:
            # What the story does about a failure is an act like any other.
            act = story.send(answer) if failure is None else story.throw(failure)
        except StopIteration as end:
            return end.value
        answer = failure = None
        try:
            answer = await _aact(act)
        except BatchrouterError as error:
            failure = error


def _act(act: _Act) -> Any:
    match act:
        case _Call(action):
            return action()
        case _Step(task, _, given):
            return task(**given)
        case _Nap(seconds):
            return time.sleep(seconds)
        case _Suspend(timeout_s):
            return suspend_flow_run(timeout=timeout_s, key=new_pause_key())


async def _aact(act: _Act) -> Any:
    match act:
        case _Call(action):
            return await asyncio.to_thread(action)
        case _Step(_, atask, given):
            return await atask(**given)
        case _Nap(seconds):
            return await asyncio.sleep(seconds)
        case _Suspend(timeout_s):
            return await asuspend_flow_run(timeout=timeout_s, key=new_pause_key())


def _announce(batch_ids: list[str], look_again_at: datetime) -> None:
    flow_run_id = _flow_run_id()
    if flow_run_id is not None:
        say_waiting(flow_run_id, batch_ids, look_again_at)


def _wake_up(way: str) -> None:
    flow_run_id = _flow_run_id()
    if way == "suspend" and flow_run_id is not None:
        say_awake(flow_run_id)


def _flow_run_id() -> UUID | None:
    context = FlowRunContext.get()
    return context.flow_run.id if context and context.flow_run else None


def _end_at(timeout_s: float | None) -> datetime:
    """The wall-clock end of all waits of this flow run; the same after each resume."""
    context = FlowRunContext.get()
    if context is None:
        raise ConfigError("run_batch_job and finish_run wait in a flow run; there is none here")
    started_at = context.flow_run.start_time if context.flow_run else None
    bound = LONGEST_WAIT if timeout_s is None else timedelta(seconds=timeout_s)
    return (started_at or datetime.now(UTC)) + bound
