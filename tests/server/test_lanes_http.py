"""A plain OpenAI-compatible server as a lane: its pace, its limits, and what a kill repeats."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes.health import unhealthy_lanes
from batchrouter.server.lanes.item_journal import FolderJournals
from batchrouter.server.lanes.lane import Lane, LaneAnswer, LaneItem, LaneProgress
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.lanes.throttle import Throttle
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.objects import Objects
from batchrouter.testing import FaultProxy
from server.stand_in import KEY, StandIn

HANDLE = f"batch_{7:032x}/0/0/1"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "router.db")
    yield opened
    opened.close()


@pytest.fixture
def lane_of(
    tmp_path: Path, proxy: FaultProxy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Lane]]:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    registries: list[LaneRegistry] = []

    def open_lane(**options: Any) -> Lane:
        price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"}
        lane = {
            "provider": "ours",
            "adapter": "openai-http",
            "region": "eu",
            "capacity_items": 1000,
            "models": [{"name": "m", **price}],
            "options": {"base_url": f"{proxy.base_url}/v1", "api_key_env": "STAND_IN_KEY"}
            | options,
        }
        config = RouterConfig.model_validate({"lanes": [lane]})
        objects = Objects.local(tmp_path / "objects")
        registries.append(LaneRegistry(config, tmp_path / "memory", database, objects))
        found = registries[-1].find("ours", "m")
        assert found is not None
        return found

    yield open_lane
    for registry in registries:
        registry.close()


def chats(*texts: str) -> list[LaneItem]:
    return [
        LaneItem(
            nth,
            "/v1/chat/completions",
            json.dumps({"messages": [{"role": "user", "content": text}]}).encode(),
            64,
        )
        for nth, text in enumerate(texts)
    ]


def carry(lane: Lane, handle: str) -> LaneProgress:
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        progress = lane.poll(handle)
        if progress.is_finished:
            return progress
        time.sleep(0.02)
    raise AssertionError("the submission does not end")


def run(lane: Lane, items: list[LaneItem]) -> list[LaneAnswer]:
    carry(lane, lane.submit(HANDLE, items))
    return list(lane.collect(HANDLE, items))


def test_each_item_is_asked_once_and_no_more_at_a_time_than_allowed(
    lane_of: Callable[..., Lane], provider: StandIn
) -> None:
    provider.behaviour.latency_s = 0.05
    texts = [f"item {nth}" for nth in range(30)]

    answers = run(lane_of(concurrency=4), chats(*texts))

    told = [
        json.loads(answer.body or b"")["choices"][0]["message"]["content"] for answer in answers
    ]
    assert told == [f"echo: {text}" for text in texts]
    assert Counter(provider.asked) == Counter(texts)
    assert 2 <= provider.most_at_once <= 4


def test_errors_are_sorted_item_by_item(lane_of: Callable[..., Lane]) -> None:
    answers = run(lane_of(), chats("[429] a", "[policy] b", "[long] c", "[500] d", "e"))

    assert [answer.error_code for answer in answers] == [
        "rate_limited",
        "content_policy",
        "context_length_exceeded",
        "provider_error",
        None,
    ]
    assert [answer.is_retryable for answer in answers] == [True, False, False, True, False]


def test_a_response_is_asked_as_a_chat_where_the_server_has_chats_only(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy
) -> None:
    item = LaneItem(0, "/v1/responses", b'{"input":"hello"}', 8)

    [answer] = run(lane_of(), [item])

    assert json.loads(answer.body or b"")["output"][0]["content"][0]["text"] == "echo: hello"
    assert proxy.count("POST", "/v1/chat/completions") == 1


def test_retry_after_leaves_the_server_alone(lane_of: Callable[..., Lane]) -> None:
    lane = lane_of(concurrency=1)
    started = time.monotonic()

    run(lane, chats("[429] a", "b"))

    # The stand-in asks for a second; nothing may be sent before it has passed.
    assert time.monotonic() - started >= 0.9


def test_what_a_kill_left_open_is_asked_again_and_counted(
    lane_of: Callable[..., Lane], provider: StandIn, tmp_path: Path
) -> None:
    items = chats("answered", "in flight", "never sent")
    journal = FolderJournals(tmp_path / "memory" / "ours" / "m").open(HANDLE)
    journal.write_items(items)
    journal.mark_sent(items[0])
    journal.write_answer(items[0], LaneAnswer(b'{"kept":true}', 3, 2))
    journal.mark_sent(items[1])
    lane = lane_of()
    assert lane.find(HANDLE) == HANDLE

    progress = carry(lane, HANDLE)
    answers = list(lane.collect(HANDLE, items))

    assert progress.possibly_repeated == 1
    assert answers[0] == LaneAnswer(b'{"kept":true}', 3, 2)
    assert sorted(provider.asked) == ["in flight", "never sent"]


def test_a_server_that_is_away_is_waited_for(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, database: Database
) -> None:
    proxy.go_away(2.0)

    answers = run(lane_of(concurrency=2), chats("a", "b"))

    assert all(answer.body is not None for answer in answers)
    assert Counter(provider.asked) == Counter(["a", "b"])
    assert unhealthy_lanes(database) == {}, "the last answer closed the breaker"


def test_a_cancel_asks_no_further_items(lane_of: Callable[..., Lane], provider: StandIn) -> None:
    provider.behaviour.latency_s = 0.3
    lane, items = lane_of(concurrency=1), chats(*(f"item {nth}" for nth in range(50)))
    handle = lane.submit(HANDLE, items)
    lane.poll(handle)
    while not provider.asked:
        time.sleep(0.01)

    lane.cancel(handle)
    carry(lane, handle)

    assert len(provider.asked) <= 2
    answers = list(lane.collect(handle, items))
    assert sum(answer.body is not None for answer in answers) == len(provider.asked)


def test_five_failures_in_a_row_take_a_lane_out_of_quotes(
    lane_of: Callable[..., Lane], proxy: FaultProxy, database: Database
) -> None:
    proxy.answer("POST", "/v1/chat/completions", status=503, times=5)

    run(lane_of(concurrency=1), chats(*"abcde"))

    assert "503" in unhealthy_lanes(database)["ours"]


def test_the_pace_is_halved_by_a_refusal_and_grows_again() -> None:
    throttle = Throttle(16)
    for _ in range(2):
        assert throttle.enter(1, lambda: False)
        throttle.leave(is_overloaded=True)
    assert throttle.limit == 4
    for _ in range(8):
        assert throttle.enter(1, lambda: False)
        throttle.leave(is_overloaded=False)
    assert 5 < throttle.limit < 16


def test_a_limit_of_requests_a_minute_is_kept() -> None:
    throttle = Throttle(16, requests_per_minute=3)
    for _ in range(3):
        assert throttle.enter(1, lambda: False)
    looks = iter([False, False, True])

    assert not throttle.enter(1, lambda: next(looks))
