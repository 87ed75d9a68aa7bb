"""The run killed by SIGKILL at each of its points, and carried on by a fresh process.

Each time: one batch at the router, one row per key, the table of an undisturbed run.
"""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchrouter.testing import RunningRouter, running_router
from crash.scenario import ROWS, SIGKILLED, Scenario, batches_of

SHORT = [
    "journal.before_intended",
    "journal.after_intended",
    "submit.before_send",
    "submit.after_send",
    "journal.before_bought",
    "api.mid_upload",
    "wait.during",
    "download.during",
    "landing.before_commit",
    "landing.after_commit",
]
"""What `make test` runs; `make drills` runs every point that the log of a whole run shows."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(router: RunningRouter, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    scenario = Scenario(tmp_path_factory.mktemp("undisturbed"), router.base_url, router.api_key)
    log = scenario.root / "points.log"
    scenario.env["BATCHROUTER_KILL_LOG"] = str(log)
    scenario.receipt()
    return scenario


def points_of(scenario: Scenario) -> list[str]:
    return sorted(set((scenario.root / "points.log").read_text().split()))


def check_killed_at(
    point: str, router: RunningRouter, undisturbed: Scenario, tmp_path: Path
) -> None:
    scenario = Scenario(tmp_path, router.base_url, router.api_key, run_key=uuid.uuid4().hex)

    killed = scenario.run(kill_at=point)
    assert killed.returncode == SIGKILLED, (point, killed.stderr[-2000:])
    receipt = scenario.receipt()

    assert len(batches_of(router, scenario.run_key)) == 1
    assert receipt["rows"]["succeeded"] == ROWS
    expected = [{**row, "_run_key": scenario.run_key} for row in undisturbed.table()]
    assert scenario.table() == expected


@pytest.mark.parametrize("point", SHORT)
def test_killed_at(
    point: str, router: RunningRouter, undisturbed: Scenario, tmp_path: Path
) -> None:
    check_killed_at(point, router, undisturbed, tmp_path)


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_killed_at_every_point_that_a_run_passes(
    router: RunningRouter, undisturbed: Scenario, tmp_path: Path
) -> None:
    points = points_of(undisturbed)
    assert set(SHORT) <= set(points)

    for point in points:
        check_killed_at(point, router, undisturbed, tmp_path / re.sub(r"\W", "-", point))
