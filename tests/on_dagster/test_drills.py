"""Kills and restarts around a real Dagster: one batch and one row a key, each time.

One deployment and one router serve all drills; each has a day of its own. The lane answers after
some seconds, so that there is a time between submission and end.
"""

import time
from collections.abc import Iterator

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

LATENCY_S = 20


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
