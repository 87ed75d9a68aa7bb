"""SIGKILL while the router lets go of what is old: nothing half gone stays, and the books hold."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import ROUTER_KILL_POINTS, RunningRouter, running_router
from server import (
    test_delivery_courier,
    test_lanes_whole,
    test_server_process,
    test_work_kills,
)

RETENTION = tuple(point for point in ROUTER_KILL_POINTS if point.startswith("retention."))
SHORT = ("retention.after_mark", "retention.after_artifacts_deleted")
SECONDS_DAYS = 2 / 86_400
CONFIG = {
    "lanes": [
        {
            "provider": "simulated-one",
            "region": "global",
            "capacity_items": 1000,
            "models": [{"name": "m", "input_usd_per_mtok": "0.1", "output_usd_per_mtok": "0.1"}],
        }
    ],
    "retention": {
        "sweep_every_s": 1,
        "unused_upload_days": SECONDS_DAYS,
        "manifest_after_end_days": SECONDS_DAYS,
        "artifact_days": SECONDS_DAYS,
        "quote_days": SECONDS_DAYS,
        "event_days": SECONDS_DAYS,
        "batch_days": 2 * SECONDS_DAYS,
        "workflow_days": SECONDS_DAYS,
    },
}
EMPTIED = ("batches", "chunks", "files", "quotes", "events", "idempotency_keys", "workflow_status")


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RunningRouter]:
    with running_router(tmp_path / "router", config=CONFIG) as router:
        yield router


def buy(router: RunningRouter) -> str:
    with Client(router.settings()) as client:
        quote = client.quote_model(["m"], estimated_items=1)
        item = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Say hello"}}
        return client.submit_batch({"quote_id": quote.quote_id, "items": [item]}).id


def select(router: RunningRouter, query: str) -> list[Any]:
    with closing(sqlite3.connect(router.data_dir / "router.db", timeout=30)) as conn:
        return conn.execute(query).fetchall()


def left_over(router: RunningRouter) -> dict[str, int]:
    """Rows and objects that are still there."""
    rows = {table: select(router, f"select count(*) from {table}")[0][0] for table in EMPTIED}
    objects = sum(path.is_file() for path in (router.data_dir / "objects").rglob("*"))
    return {name: count for name, count in {**rows, "objects": objects}.items() if count}


@pytest.mark.parametrize(
    "point",
    [pytest.param(each, marks=() if each in SHORT else pytest.mark.drill) for each in RETENTION],
)
def test_what_a_kill_left_goes_with_the_next_sweep(router: RunningRouter, point: str) -> None:
    router.restart({"BATCHROUTER_KILL_AT": point})
    buy(router)
    assert router.wait_for_death(60) == -9
    router.start()

    give_up_at = time.monotonic() + 60
    while left_over(router):
        assert time.monotonic() < give_up_at, left_over(router)
        time.sleep(0.2)

    [(balance, reserved, spent)] = select(
        router, "select balance_micro, reserved_micro, spent_micro from workspaces"
    )
    assert (reserved, balance + spent) == (0, 1000 * 10**6)
    assert spent > 0
    with Client(router.settings()) as client:
        assert client.retrieve_batch(buy(router)).counts.total == 1


def test_every_point_of_the_router_is_killed_at_by_some_test() -> None:
    killed_at = {
        *test_work_kills.EVERY_POINT,
        *test_server_process.KILL_POINTS,
        *test_server_process.CANCEL_POINTS,
        *test_delivery_courier.KILL_POINTS,
        *test_lanes_whole.LANE_KILL_POINTS,
        *test_lanes_whole.ITEM_KILL_POINTS,
        *RETENTION,
    }

    assert killed_at == set(ROUTER_KILL_POINTS)
