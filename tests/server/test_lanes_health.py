"""The circuit breaker: out after five failures in a row, in again by a success, and cheap."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select

from batchrouter.server.lanes.health import FAILURES_TO_OPEN, LaneHealth, unhealthy_lanes
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import lane_health


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "router.db")
    yield opened
    opened.close()


def failures_of(database: Database, provider: str) -> int:
    wanted = select(lane_health.c.failures).where(lane_health.c.provider == provider)
    with database.reading() as conn:
        return conn.execute(wanted).scalar_one()


def test_the_fifth_failure_in_a_row_takes_a_lane_out_with_its_reason(database: Database) -> None:
    health = LaneHealth(database, "ours")

    for _ in range(FAILURES_TO_OPEN - 1):
        health.failed("503")
    assert unhealthy_lanes(database) == {}
    health.failed("503 Service Unavailable")

    assert unhealthy_lanes(database) == {
        "ours": "has failed 5 times in a row; last: 503 Service Unavailable"
    }


def test_a_success_lets_it_in_and_counting_begins_anew(database: Database) -> None:
    health = LaneHealth(database, "ours")
    for _ in range(FAILURES_TO_OPEN):
        health.failed("503")

    health.succeeded()

    assert unhealthy_lanes(database) == {}
    for _ in range(FAILURES_TO_OPEN - 1):
        health.failed("503")
    assert unhealthy_lanes(database) == {}
    health.failed("503")
    assert list(unhealthy_lanes(database)) == ["ours"]


def test_failures_of_two_processes_are_counted_together(database: Database) -> None:
    for health in [LaneHealth(database, "ours"), LaneHealth(database, "ours")]:
        for _ in range(3):
            health.failed("503")

    assert list(unhealthy_lanes(database)) == ["ours"]


def test_a_provider_that_is_down_does_not_keep_the_database_busy(database: Database) -> None:
    health = LaneHealth(database, "ours")
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)

    for _ in range(1_000):
        health.failed("503")

    assert len(commits) < 50
    assert failures_of(database, "ours") >= FAILURES_TO_OPEN
