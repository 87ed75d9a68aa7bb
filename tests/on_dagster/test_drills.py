"""Kill, restart, retry, terminate, repeat, on a real Dagster: one batch, one row a key, each time.

One deployment and one router serve all drills; each has a day of its own. The lane answers after
some seconds, so that there is a time between submission and end.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from batchrouter import Client
from batchrouter.api.models import Batch
from batchrouter.testing import running_router
from on_dagster.conftest import DAYS, lane
from on_dagster.deployment import Deployment
from on_dagster.test_real import SUBMISSION, TABLE, Scene

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

LATENCY_S = 60
"""Long enough for a terminated run to reach its batch on a busy machine."""


class Drill:
    """The shared stage, and what is true of a day on it."""

    def __init__(self, scene: Scene, dagster: Deployment) -> None:
        self.scene, self.dagster, self.router = scene, dagster, scene.router

    def batches(self, day: str) -> list[Batch]:
        """The batches that the router has for a day's run."""
        with Client(self.router.settings(runs_url=str(self.scene.folder / "runs"))) as client:
            page = client.list_batches(limit=1000)
        run_key = f"{TABLE}:{day}"
        return [each for each in page.data if each.metadata["batchrouter_run_key"] == run_key]

    def wait_for_batch(self, day: str) -> Batch:
        return self.dagster.wait_until(lambda: self.batches(day), "a batch", 180)[0]

    def check_landed(self, day: str) -> None:
        """The table of a day comes, with one batch and one row a key, and nothing is left open."""
        self.dagster.wait_until(lambda: day in self.dagster.materialized(TABLE), "the table", 300)
        self.dagster.statuses_at_rest()
        table = ds.dataset(self.scene.job["sink"], format="parquet").to_table()
        rows = table.filter(pc.starts_with(table.column("ticket_id"), day))
        assert sorted(rows.column("ticket_id").to_pylist()) == [f"{day}-{row}" for row in range(3)]
        assert set(rows.column("_status").to_pylist()) == {"succeeded"}
        assert len(self.batches(day)) == 1
        assert [each.state for each in self.batches(day)] == ["succeeded"]

    def launch_and_stop(self, day: str, point: str, **tags: str) -> tuple[str, list[int]]:
        """Launch a submission, whose step stops at a kill point; return its run and the step."""
        with self.stopping_at(point) as is_reached:
            run_id = self.dagster.launch(SUBMISSION, partition=day, tags=tags)
            self.dagster.wait_until(is_reached, point, 240)
        return run_id, self.dagster.pids_of_run(run_id)["steps"]

    @contextlib.contextmanager
    def stopping_at(self, point: str) -> Iterator[Callable[[], bool]]:
        """Let processes that start meanwhile stop at a point; the function says if one has."""
        passed = self.scene.folder / f"passed-{time.time_ns()}"
        stop_at = self.scene.folder / "stop_at.json"
        told = {"BATCHROUTER_STOP_AT": point, "BATCHROUTER_KILL_LOG": str(passed)}
        stop_at.write_text(json.dumps(told))
        try:
            yield lambda: passed.exists() and point in passed.read_text().split()
        finally:
            stop_at.unlink()

    def landings(self, day: str) -> list[dg.DagsterRun]:
        """The runs that the sensor launched for a day, newest first."""
        tags = {"batchrouter/run_key": f"{TABLE}:{day}"}
        return list(self.dagster.instance.get_runs(dg.RunsFilter(tags=tags)))

    def launched(self) -> list[tuple[str, str]]:
        """All runs at rest but those of the report, whose automation comes when it comes."""
        return [each for each in self.dagster.statuses_at_rest() if each[0] != "report"]

    def retries_of(self, run_id: str) -> list[dg.DagsterRun]:
        runs = self.dagster.instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": run_id}))
        return [run for run in runs if run.run_id != run_id]


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = tmp_path_factory.mktemp("drill")
    lanes = [lane("slow", latency_s=LATENCY_S)]
    with running_router(tmp_path_factory.mktemp("router"), config={"lanes": lanes}) as router:
        scene = Scene(folder, router, route={"models": ["slow"]})
        scene.with_days()
        scene.env |= {"TEST_EXECUTOR": "multiprocess", "TEST_QUIET_S": "20"}
        with scene.deployment() as dagster:
            yield Drill(scene, dagster)


days: Iterator[str] = iter(DAYS.get_partition_keys())


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        return state not in {"Z", "X"}
    return False


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_run_worker_and_its_step_killed_right_after_the_purchase(drill: Drill) -> None:
    day = next(days)
    tags = {"dagster/max_retries": "2"}
    run_id, steps = drill.launch_and_stop(day, "submit.after_send", **tags)
    assert len(drill.batches(day)) == 1
    kill(steps + drill.dagster.pids_of_run(run_id)["worker"])

    assert drill.dagster.wait_for_run(run_id, 240) is dg.DagsterRunStatus.FAILURE
    drill.check_landed(day)
    assert drill.retries_of(run_id)[-1].status is dg.DagsterRunStatus.SUCCESS


def test_a_step_killed_right_after_the_purchase_is_retried_in_its_run(drill: Drill) -> None:
    day = next(days)
    run_id, steps = drill.launch_and_stop(day, "submit.after_send")
    assert len(drill.batches(day)) == 1
    kill(steps)

    assert drill.dagster.wait_for_run(run_id, 240) is dg.DagsterRunStatus.SUCCESS
    drill.check_landed(day)
    assert any(each.is_step_restarted for each in drill.dagster.events_of(run_id))


def test_a_step_left_as_an_orphan_goes_on_after_its_successor(drill: Drill) -> None:
    day = next(days)
    tags = {"dagster/max_retries": "2"}
    run_id, [orphan] = drill.launch_and_stop(day, "submit.after_send", **tags)
    kill(drill.dagster.pids_of_run(run_id)["worker"])

    assert drill.dagster.wait_for_run(run_id, 240) is dg.DagsterRunStatus.FAILURE
    drill.check_landed(day)
    assert is_alive(orphan)
    os.kill(orphan, signal.SIGCONT)
    drill.dagster.wait_until(lambda: not is_alive(orphan), "the orphan's end", 180)
    drill.check_landed(day)


def test_the_daemon_killed_between_the_end_of_a_batch_and_its_landing(drill: Drill) -> None:
    day = next(days)
    drill.dagster.wait_for_run(drill.dagster.launch(SUBMISSION, partition=day), 180)
    drill.dagster.kill("daemon")
    drill.dagster.wait_until(lambda: drill.batches(day)[0].is_terminal, "the batch's end", 180)
    assert day not in drill.dagster.materialized(TABLE)

    drill.dagster.start_daemon()

    drill.check_landed(day)


def test_the_router_is_away_while_steps_and_runs_are_retried(drill: Drill) -> None:
    day = next(days)
    drill.router.stop()
    run_id = drill.dagster.launch(SUBMISSION, partition=day, tags={"dagster/max_retries": "3"})
    drill.dagster.wait_until(
        lambda: (
            len([e for e in drill.dagster.instance.all_logs(run_id) if "RETRY" in str(e)]) > 0
            or drill.dagster.run(run_id).is_finished
        ),
        "a retried step",
        300,
    )
    drill.router.start()

    drill.dagster.wait_until(lambda: day in drill.dagster.materialized(SUBMISSION), "it", 400)

    drill.check_landed(day)


def test_the_router_restarted_while_a_batch_is_in_flight(drill: Drill) -> None:
    day = next(days)
    drill.dagster.wait_for_run(drill.dagster.launch(SUBMISSION, partition=day), 180)

    drill.router.kill()
    time.sleep(3)
    drill.router.start()

    drill.check_landed(day)


def test_a_landing_run_killed_is_launched_again(drill: Drill) -> None:
    day = next(days)
    with drill.stopping_at("landing.before_commit") as is_reached:
        drill.dagster.wait_for_run(drill.dagster.launch(SUBMISSION, partition=day), 240)
        drill.dagster.wait_until(is_reached, "the landing", 300)
    [first] = drill.landings(day)
    pids = drill.dagster.pids_of_run(first.run_id)
    kill(pids["worker"] + pids["steps"])

    assert drill.dagster.wait_for_run(first.run_id, 240) is dg.DagsterRunStatus.FAILURE
    drill.check_landed(day)
    assert [each.status for each in drill.landings(day)] == [
        dg.DagsterRunStatus.SUCCESS,
        dg.DagsterRunStatus.FAILURE,
    ]


def test_ticks_from_the_beginning_land_nothing_again(drill: Drill) -> None:
    before = drill.launched()
    assert (TABLE, "SUCCESS") in before

    drill.dagster.set_cursor("batchrouter_sensor", None)
    reset_at = time.time()
    drill.dagster.wait_until(
        lambda: len(drill.dagster.ticks_since("batchrouter_sensor", reset_at)) >= 3, "ticks", 180
    )

    assert drill.launched() == before


def test_a_terminated_run_takes_its_batch_with_it(drill: Drill) -> None:
    day = next(days)
    run_id, [step] = drill.launch_and_stop(day, "submit.after_send")
    drill.dagster.terminate(run_id)
    os.kill(step, signal.SIGCONT)

    assert drill.dagster.wait_for_run(run_id, 240) is dg.DagsterRunStatus.CANCELED
    # What the provider has is finished all the same, so it is seen only in between.
    drill.dagster.wait_until(lambda: drill.batches(day)[0].state == "cancelling", "the cancel", 60)
    assert len(drill.batches(day)) == 1


def test_a_run_terminated_in_its_queue_buys_nothing(drill: Drill) -> None:
    day = next(days)
    drill.dagster.kill("daemon")  # so that it stays queued
    run_id = drill.dagster.launch(SUBMISSION, partition=day)
    drill.dagster.terminate(run_id)
    drill.dagster.start_daemon()

    assert drill.dagster.wait_for_run(run_id) is dg.DagsterRunStatus.CANCELED
    assert not drill.batches(day)


def test_no_landing_failed_but_the_one_that_was_killed(drill: Drill) -> None:
    failed = [assets for assets, status in drill.dagster.statuses_at_rest() if status == "FAILURE"]
    assert failed.count(TABLE) == 1
    assert set(failed) <= {TABLE, SUBMISSION}  # submissions were killed, or met no router
