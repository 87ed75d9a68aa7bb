"""Several processes on one PostgreSQL: killed, stopped and woken, nothing is bought twice."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import ROUTER_KILL_POINTS, RunningRouter
from crash.desk import wait_until
from server.cluster import Cluster, cluster
from server.stand_in import KEY, StandIn
from server.test_lanes_cli import cli
from server.test_lanes_whole import (
    NEVER_SENT,
    artifact,
    assert_money_adds_up,
    buy,
    config,
    ended,
    lane,
)

TEXTS = [f"item {nth}" for nth in range(8)]
ELSEWHERE = {
    "work.before_plan_stored",
    "work.after_plan_stored",
    "lanes.before_item",
    "lanes.after_item",
    "work.after_results_deleted",
}
"""Of the planning, of lanes that take single items, and of what is done when all is over."""

STOP_POINTS = [
    point
    for point in ROUTER_KILL_POINTS
    if point.startswith(("work.", "lanes.", "states.")) and point not in ELSEWHERE
]
"""Every point of a chunk's and a batch's life at which a worker can be taken for dead."""

STOPS = [
    *(("openai-batch", point) for point in STOP_POINTS),
    *(("mistral-batch", point) for point in STOP_POINTS),
    # Where nobody but a person can tell, it waits for one: tests of their own, below.
    *(("anthropic-batch", point) for point in STOP_POINTS if point not in NEVER_SENT),
]

PLAIN_STOPS = [
    *(point for point in STOP_POINTS if not point.startswith("lanes.")),
    *(f"lanes.{when}_item:{nth}" for when in ("before", "after") for nth in (1, 5, 8)),
]


@pytest.fixture
def routers(
    tmp_path: Path, postgres_url: str, provider: StandIn
) -> Iterator[Callable[..., Cluster]]:
    from contextlib import ExitStack

    env = {"BATCHROUTER_OBJECTS": str(tmp_path / "objects"), "STAND_IN_KEY": KEY}
    with ExitStack() as stack:

        def start(adapter: str = "openai-batch", **options: Any) -> Cluster:
            served = config(lane("one", adapter, provider, **options))
            return stack.enter_context(cluster(tmp_path / "cluster", postgres_url, served, env))

        yield start


def check(made: Cluster, client: Client, batch_id: str, provider: StandIn) -> None:
    check_receipt(made, client, batch_id)
    assert provider.bought == Counter(TEXTS)


def check_receipt(made: Cluster, client: Client, batch_id: str) -> int:
    """All is answered and the books are even; returns how many may be repeated."""
    batch = ended(client, batch_id)
    lines = artifact(client, batch_id)
    assert batch.state == "succeeded", made.log()
    assert batch.counts.completed == len(TEXTS)
    told = [line["output"]["choices"][0]["message"]["content"] for line in lines]
    assert told == [f"echo: {text}" for text in TEXTS]
    assert_money_adds_up(batch, lines)
    [(balance, reserved, spent, charged)] = made.rows(
        "select balance_micro, reserved_micro, spent_micro,"
        " (select sum(charged_micro) from batches) from workspaces"
    )
    assert reserved == 0
    assert spent == charged
    assert balance + spent == 100 * 10**6
    return batch.billing_receipt.possibly_repeated


def wake(made: Cluster, stopped: RunningRouter) -> None:
    """Let it go on when its lease is taken: it notices, says so, and ends."""
    taken = "select count(*) from workers where taken_at is not null"
    wait_until(lambda: made.rows(taken) == [(1,)], within_s=60)
    stopped.send(signal.SIGCONT)
    assert stopped.wait_for_death(60) == 12, stopped.log_path.read_text()
    assert "another worker goes on" in stopped.log_path.read_text()


@contextmanager
def stopped_at(made: Cluster, point: str) -> Iterator[tuple[Client, str, RunningRouter]]:
    """Give a client, its batch, and the worker that is stopped there; another one is added."""
    api = made.add("api")
    stopped = made.add("worker", env={"BATCHROUTER_STOP_AT": point})
    with Client(base_url=api.base_url, api_key=made.api_key) as client:
        batch_id = buy(client, TEXTS)
        stopped.wait_until_stopped()
        made.add("worker")
        yield client, batch_id, stopped


def stop_take_over_and_wake(made: Cluster, provider: StandIn, point: str) -> None:
    with stopped_at(made, point) as (client, batch_id, stopped):
        check(made, client, batch_id, provider)
        wake(made, stopped)
        check(made, client, batch_id, provider)


def test_a_worker_that_was_only_stopped_buys_and_books_nothing_again(
    routers: Callable[..., Cluster], provider: StandIn
) -> None:
    stop_take_over_and_wake(routers(), provider, "lanes.before_create")


@pytest.mark.drill
@pytest.mark.parametrize(("adapter", "point"), STOPS)
def test_a_worker_that_is_stopped_anywhere_buys_and_books_nothing_again(
    routers: Callable[..., Cluster], provider: StandIn, adapter: str, point: str
) -> None:
    stop_take_over_and_wake(routers(adapter), provider, point)


@pytest.mark.drill
@pytest.mark.parametrize("point", ["lanes.after_intent", "lanes.before_create"])
def test_what_a_person_calls_not_bought_is_bought_once_whoever_wakes(
    routers: Callable[..., Cluster], provider: StandIn, point: str
) -> None:
    made = routers("anthropic-batch")
    with stopped_at(made, point) as (client, batch_id, stopped):
        held = until_held(made)
        assert not provider.batches
        settle_held(made, held, "--not-bought")
        check(made, client, batch_id, provider)
        wake(made, stopped)
        check(made, client, batch_id, provider)


@pytest.mark.drill
def test_a_create_that_a_woken_worker_sends_late_is_adopted_and_not_sent_again(
    routers: Callable[..., Cluster], provider: StandIn
) -> None:
    """Stopped behind its last look at the lease, it can't be kept from sending: the rest waits."""
    made = routers("anthropic-batch")
    with stopped_at(made, "lanes.mid_create") as (client, batch_id, stopped):
        held = until_held(made)
        assert not provider.batches
        wake(made, stopped)
        assert until_held(made) == held
        assert client.retrieve_batch(batch_id).state == "running"
        [late] = provider.batches
        settle_held(made, held, "--adopt", late)
        check(made, client, batch_id, provider)


def until_held(made: Cluster) -> str:
    held = "select key from lane_submissions where state = 'held'"
    wait_until(lambda: len(made.rows(held)) == 1, within_s=60)
    return made.rows(held)[0][0]


def settle_held(made: Cluster, submission: str, *decision: str) -> None:
    env = {**os.environ, **made.env}
    told = cli("reconcile", submission, "--data", str(made.root), *decision, env=env)
    assert told.returncode == 0, told.stderr


@pytest.mark.drill
@pytest.mark.parametrize("point", STOP_POINTS)
def test_what_a_killed_worker_had_begun_is_gone_on_with(
    routers: Callable[..., Cluster], provider: StandIn, point: str
) -> None:
    made = routers()
    api = made.add("api")
    killed = made.add("worker", env={"BATCHROUTER_KILL_AT": point})
    with Client(base_url=api.base_url, api_key=made.api_key) as client:
        batch_id = buy(client, TEXTS)
        assert killed.wait_for_death() == -9
        made.add("worker")
        check(made, client, batch_id, provider)


@pytest.mark.drill
@pytest.mark.parametrize("point", PLAIN_STOPS)
def test_a_plain_lane_asks_again_no_more_than_was_in_flight_at_the_stop(
    routers: Callable[..., Cluster], provider: StandIn, point: str
) -> None:
    made = routers("openai-http", concurrency=2)
    with stopped_at(made, point) as (client, batch_id, stopped):
        check_repeats(made, client, batch_id, provider, point)
        wake(made, stopped)
        check_repeats(made, client, batch_id, provider, point)


def check_repeats(
    made: Cluster, client: Client, batch_id: str, provider: StandIn, point: str
) -> None:
    counted = check_receipt(made, client, batch_id)
    asked = Counter(provider.asked)
    assert asked.keys() == set(TEXTS)
    # Where no item is in flight, none may be asked again.
    assert asked.total() - len(TEXTS) <= counted <= (2 if "_item" in point else 0)
    # Deleted behind the commit that ends the batch.
    wait_until(lambda: made.rows("select count(*) from lane_items") == [(0,)], within_s=60)


@pytest.mark.parametrize(
    "signum", [pytest.param(signal.SIGKILL, marks=pytest.mark.drill), signal.SIGSTOP]
)
def test_a_plain_lane_goes_on_at_another_worker_and_counts_what_may_be_repeated(
    routers: Callable[..., Cluster], provider: StandIn, signum: signal.Signals
) -> None:
    made = routers("openai-http", concurrency=2)
    how = {signal.SIGKILL: "BATCHROUTER_KILL_AT", signal.SIGSTOP: "BATCHROUTER_STOP_AT"}[signum]
    api = made.add("api")
    first = made.add("worker", env={how: "lanes.before_item:5"})
    with Client(base_url=api.base_url, api_key=made.api_key) as client:
        batch_id = buy(client, TEXTS)
        if signum is signal.SIGSTOP:
            first.wait_until_stopped()
        else:
            first.wait_for_death()
        made.add("worker")
        batch = ended(client, batch_id)
        if signum is signal.SIGSTOP:
            first.send(signal.SIGCONT)
            assert first.wait_for_death(60) == 12
        lines = artifact(client, batch_id)
    assert batch.counts.completed == len(TEXTS), made.log()
    repeated = sum(times - 1 for times in Counter(provider.asked).values())
    assert repeated <= batch.billing_receipt.possibly_repeated <= 2
    assert_money_adds_up(batch, lines)
    assert made.rows("select count(*) from lane_items") == [(0,)]


def test_a_worker_that_is_asked_to_stop_hands_its_work_on_at_once(
    routers: Callable[..., Cluster], provider: StandIn
) -> None:
    made = routers(poll_s=0.2)
    provider.behaviour.polls = 30
    api, first = made.add("api"), made.add("worker")
    with Client(base_url=api.base_url, api_key=made.api_key) as client:
        batch_id = buy(client, TEXTS)
        wait_until(lambda: bool(provider.batches), within_s=90)
        first.send(signal.SIGTERM)
        first.wait_for_death(90)
        assert made.rows("select count(*) from workers where taken_at is null") == [(0,)]
        made.add("worker")
        check(made, client, batch_id, provider)
