"""A lane's load: what waits there and how long it takes decide whether it would be in time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from batchrouter.server.lanes.lane import Lane
from batchrouter.server.lanes.load import IDLE, REMEMBERED_S, LaneLoad, lane_loads, note_pace
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import batches, lane_pace
from server.test_lanes_batch import chats, run
from server.test_server_quotes import ask, lane, open_with, rejected


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "router.db")
    yield opened
    opened.close()


def test_a_pace_is_a_moving_mean_and_is_forgotten_after_a_day(database: Database) -> None:
    assert lane_loads(database) == {}

    note_pace(database, "ours", 100.0)
    assert lane_loads(database) == {"ours": LaneLoad(0, 100.0)}
    note_pace(database, "ours", 20.0)
    assert lane_loads(database) == {"ours": LaneLoad(0, 80.0)}

    long_ago = now_us() - int((REMEMBERED_S + 1) * 1_000_000)
    with database.writing() as conn:
        conn.execute(update(lane_pace).values(noted_at=long_ago))
    assert lane_loads(database) == {}


@pytest.mark.parametrize("adapter", ["openai-batch", "anthropic-batch"])
def test_a_lane_that_buys_notes_its_pace(
    lane_of: Callable[..., Lane], tmp_path: Path, adapter: str
) -> None:
    run(lane_of(adapter), chats("one", "two"))

    database = Database.open(tmp_path / "router.db")
    [load] = lane_loads(database).values()
    database.close()
    assert 0 < load.chunk_s < 20


def estimate(surface: Any) -> int:
    return ask(surface)["quote_lanes"][0]["estimated_completion_seconds"]


def test_what_waits_at_a_lane_is_in_the_next_quote_and_can_make_it_too_late(
    open_surface: Callable[..., Any],
) -> None:
    slow = {**lane("a"), "estimated_completion_s": 60, "items_per_second": 0.001}
    surface = open_with(open_surface, slow, lane("b", rate="9.00"))
    database = surface.services.database
    assert estimate(surface) == 60 + 10_000

    # Ten items a quote, and nothing is worked on here.
    for waiting in (10, 20, 30):
        quote = ask(surface)
        assert quote["quote_lanes"][0]["provider"] == "simulated-a"
        buy(surface, quote)
        assert lane_loads(database)["simulated-a"] == LaneLoad(waiting)
        assert estimate(surface) == 60 + 1_000 * (waiting + 10)
    for _ in range(5):
        buy(surface, ask(surface))

    dearer = ask(surface)
    assert dearer["quote_lanes"][0]["provider"] == "simulated-b"
    assert rejected(dearer) == {"simulated-a": "sla_unattainable"}
    assert "80 items wait there" in str(dearer)

    with database.writing() as conn:
        conn.execute(update(batches).values(completed=batches.c.total))
    assert lane_loads(database).get("simulated-a", IDLE) == IDLE
    assert ask(surface)["quote_lanes"][0]["provider"] == "simulated-a"


def buy(surface: Any, quote: dict[str, Any]) -> None:
    file = surface.upload(items=10)
    reply = surface.submit(quote_id=quote["quote_id"], input_file_id=file["file_id"])
    assert reply.status_code in {200, 201, 202}, reply.text


def test_a_provider_that_was_slow_lately_is_expected_to_be_slow(
    open_surface: Callable[..., Any],
) -> None:
    surface = open_with(open_surface, {**lane("a"), "items_per_second": 1000})
    assert estimate(surface) == 60

    note_pace(surface.services.database, "simulated-a", 5_000.0)

    assert estimate(surface) == 5_000
