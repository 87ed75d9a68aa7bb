"""Lanes over providers' batch APIs: bought once, read whole, salvaged, and never bought blindly."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from batchrouter.server.lanes.lane import Lane, LaneAnswer, LaneItem, LaneProgress
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import lane_submissions
from batchrouter.testing import FaultProxy
from server.stand_in import StandIn

CHAT = "/v1/chat/completions"
CREATES = {
    "openai-batch": "/v1/batches",
    "mistral-batch": "/v1/batch/jobs",
    "anthropic-batch": "/v1/messages/batches",
}
WITH_FILES = ("openai-batch", "mistral-batch")
keys = (f"batch_{number:032x}/0/0/1" for number in itertools.count())


def chats(*texts: str) -> list[LaneItem]:
    return [
        LaneItem(
            nth,
            CHAT,
            json.dumps({"model": "ours", "messages": [{"role": "user", "content": text}]}).encode(),
            64,
        )
        for nth, text in enumerate(texts, start=100)
    ]


def carry(lane: Lane, handle: str, *, within_s: float = 20.0) -> LaneProgress:
    """Poll until the submission has ended."""
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        try:
            progress = lane.poll(handle)
        except ConnectionError:
            progress = LaneProgress(is_finished=False)
        if progress.is_finished:
            return progress
        time.sleep(0.02)
    raise AssertionError("the submission does not end")


def run(lane: Lane, items: list[LaneItem]) -> list[LaneAnswer]:
    handle = lane.submit(next(keys), items)
    progress = carry(lane, handle)
    assert progress.refusal is None, progress.refusal
    return list(lane.collect(handle, items))


def said(answer: LaneAnswer) -> str:
    assert answer.body is not None, answer
    body = json.loads(answer.body)
    if "choices" in body:
        return body["choices"][0]["message"]["content"]
    return body["output"][0]["content"][0]["text"]


def strangers() -> list[dict[str, Any]]:
    """One request of another program that shares the account."""
    params = {"model": "m", "messages": [{"content": "not ours"}]}
    return [{"custom_id": "x-1", "params": params}]


def state_of(tmp_path: Path, handle: str) -> str:
    database = Database.open(tmp_path / "router.db")
    with database.reading() as conn:
        row = conn.execute(lane_submissions.select().where(lane_submissions.c.key == handle)).one()
    database.close()
    return row.state


@pytest.mark.parametrize("adapter", CREATES)
def test_mixed_outcomes_are_read_from_shuffled_results(
    lane_of: Callable[..., Lane], provider: StandIn, adapter: str
) -> None:
    items = chats("one", "[429] two", "[policy] three", "[long] four", "[500] five", "six")

    answers = run(lane_of(adapter), items)

    assert said(answers[0]) == "echo: one"
    assert said(answers[5]) == "echo: six"
    assert [answer.error_code for answer in answers[1:5]] == [
        "rate_limited",
        "content_policy",
        "context_length_exceeded",
        "provider_error",
    ]
    assert [answer.is_retryable for answer in answers[1:5]] == [True, False, False, True]
    assert "slow down" in answers[1].error_message
    assert all(answers[nth].input_tokens > 0 < answers[nth].output_tokens for nth in (0, 5))
    assert max(provider.bought.values()) == 1
    [batch] = provider.batches.values()
    bodies = [line.get("body") or line["params"] for line in batch.lines]
    assert {body.get("model") for body in bodies} == {"m"}
    assert all(64 in {body.get("max_completion_tokens"), body.get("max_tokens")} for body in bodies)


@pytest.mark.parametrize("adapter", ["openai-batch", "anthropic-batch", "mistral-batch"])
def test_a_response_is_answered_as_a_response(lane_of: Callable[..., Lane], adapter: str) -> None:
    schema = {"type": "object", "properties": {"echo": {"type": "string"}}}
    asked = {
        "instructions": "Be short.",
        "input": "hello",
        "text": {"format": {"type": "json_schema", "name": "label", "schema": schema}},
    }
    item = LaneItem(7, "/v1/responses", json.dumps(asked).encode(), 32)

    [answer] = run(lane_of(adapter), [item])

    assert json.loads(answer.body or b"")["object"] == "response"
    assert json.loads(said(answer)) == {"echo": "hello"}


@pytest.mark.parametrize("adapter", CREATES)
def test_a_lost_reply_of_a_create_is_found_and_not_sent_again(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, adapter: str
) -> None:
    proxy.drop_reply("POST", CREATES[adapter])

    answers = run(lane_of(adapter), chats("one", "two"))

    assert [said(answer) for answer in answers] == ["echo: one", "echo: two"]
    assert proxy.count("POST", CREATES[adapter]) == 1
    assert provider.bought == Counter({"one": 1, "two": 1})


@pytest.mark.parametrize("status", [408, 409, 500, 503])
@pytest.mark.parametrize("adapter", WITH_FILES)
def test_a_create_that_never_arrived_is_sent_again_with_a_new_file(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, adapter: str, status: int
) -> None:
    proxy.answer("POST", CREATES[adapter], status=status)

    answers = run(lane_of(adapter), chats("one"))

    assert said(answers[0]) == "echo: one"
    assert proxy.count("POST", CREATES[adapter]) == 2
    assert proxy.count("DELETE", "/v1/files/*") == 1
    assert list(provider.files) == ["file-0001"] or len(provider.files) == 1
    assert provider.bought == Counter({"one": 1})


def test_without_files_a_lost_create_is_held_for_a_person(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.answer("POST", CREATES["anthropic-batch"], status=500)
    lane = lane_of("anthropic-batch")
    held = lane.submit(next(keys), chats("one"))
    other = lane.submit(next(keys), chats("two"))
    for _ in range(60):
        lane.poll(held)
        lane.poll(other)
        time.sleep(0.02)

    assert state_of(tmp_path, held) == "held"
    assert state_of(tmp_path, other) == "prepared", "one open create of an account at a time"
    assert proxy.count("POST", CREATES["anthropic-batch"]) == 1
    assert not provider.batches


def test_without_metadata_two_that_fit_are_not_guessed_between(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, tmp_path: Path
) -> None:
    stranger = [
        {"custom_id": "x-1", "params": {"model": "m", "messages": [{"content": "not ours"}]}}
    ]
    provider.create(stranger, endpoint="messages", input_file=None, metadata={})
    proxy.drop_reply("POST", CREATES["anthropic-batch"])
    lane = lane_of("anthropic-batch")
    handle = lane.submit(next(keys), chats("one"))
    for _ in range(10):
        lane.poll(handle)

    assert state_of(tmp_path, handle) == "held"
    assert proxy.count("POST", CREATES["anthropic-batch"]) == 1


def test_a_batch_of_somebody_else_that_fits_is_not_taken_for_ours(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy, tmp_path: Path
) -> None:
    stranger = [
        {"custom_id": "x-1", "params": {"model": "m", "messages": [{"content": "not ours"}]}}
    ]
    proxy.answer("POST", CREATES["anthropic-batch"], status=500)
    lane = lane_of("anthropic-batch", settle_s=30)
    handle = lane.submit(next(keys), chats("one"))
    lane.poll(handle)
    provider.create(stranger, endpoint="messages", input_file=None, metadata={})
    for _ in range(20):
        lane.poll(handle)
        time.sleep(0.02)

    assert state_of(tmp_path, handle) == "held"


@pytest.mark.parametrize("adapter", CREATES)
def test_what_an_expired_batch_has_done_is_kept_and_the_rest_gives_way(
    lane_of: Callable[..., Lane], provider: StandIn, adapter: str
) -> None:
    provider.behaviour.expire_after = 2
    lane, items = lane_of(adapter), chats("one", "two", "three")
    handle = lane.submit(next(keys), items)

    progress = carry(lane, handle)
    answers = list(lane.collect(handle, items))

    assert progress.gave_way
    assert [answer.body is not None for answer in answers] == [True, True, False]
    assert (answers[2].error_code, answers[2].is_retryable) == ("provider_timeout", True)


@pytest.mark.parametrize("adapter", CREATES)
def test_a_cancel_reaches_the_provider_and_what_was_done_is_kept(
    lane_of: Callable[..., Lane], provider: StandIn, adapter: str
) -> None:
    provider.behaviour.polls = 10_000
    lane, items = lane_of(adapter), chats("one", "two")
    handle = lane.submit(next(keys), items)
    while not provider.batches:
        lane.poll(handle)

    lane.cancel(handle)
    carry(lane, handle)

    assert [batch.is_cancelled for batch in provider.batches.values()] == [True]
    assert sum(answer.body is not None for answer in lane.collect(handle, items)) == 1


def test_a_full_queue_is_waited_for_and_not_failed(
    lane_of: Callable[..., Lane],
    provider: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("batchrouter.server.lanes.batch_lane.FULL_QUEUE_FIRST_S", 0.05)
    provider.behaviour.queue_full = 2

    answers = run(lane_of("openai-batch"), chats("one"))

    assert said(answers[0]) == "echo: one"
    assert len(provider.batches) == 3
    assert provider.bought == Counter({"one": 1})


def test_no_more_is_queued_at_the_provider_than_it_takes(
    lane_of: Callable[..., Lane], provider: StandIn, tmp_path: Path
) -> None:
    provider.behaviour.polls = 10_000
    lane = lane_of("openai-batch", enqueued_tokens=30)
    first = lane.submit(next(keys), chats("a" * 40))
    second = lane.submit(next(keys), chats("b" * 40))
    for _ in range(10):
        lane.poll(first)
        lane.poll(second)

    assert len(provider.batches) == 1
    provider.behaviour.polls = 0
    carry(lane, first)
    carry(lane, second)
    assert len(provider.batches) == 2


def test_lines_that_are_broken_or_missing_cost_their_items_alone(
    lane_of: Callable[..., Lane],
) -> None:
    answers = run(lane_of("openai-batch"), chats("one", "[broken] two", "[lost] three"))

    assert said(answers[0]) == "echo: one"
    assert [(each.error_code, each.is_retryable) for each in answers[1:]] == [
        ("provider_error", False),
        ("provider_error", False),
    ]


def test_a_batch_that_the_provider_forgets_is_held(
    lane_of: Callable[..., Lane], provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrouter.server.lanes.batch_lane.UNKNOWN_FOR_S", 0.1)
    lane = lane_of("openai-batch")
    handle = lane.submit(next(keys), chats("one"))
    while not provider.batches:
        lane.poll(handle)
    provider.behaviour.is_forgetful = True
    for _ in range(20):
        lane.poll(handle)
        time.sleep(0.02)

    assert state_of(tmp_path, handle) == "held"
    assert len(provider.batches) == 1


def test_a_cut_download_is_read_again(
    lane_of: Callable[..., Lane], provider: StandIn, proxy: FaultProxy
) -> None:
    proxy.truncate("GET", "/v1/files/out-*", after_bytes=40, times=2)

    answers = run(lane_of("openai-batch"), chats("one", "two"))

    assert [said(answer) for answer in answers] == ["echo: one", "echo: two"]
    assert provider.bought == Counter({"one": 1, "two": 1})


@pytest.mark.parametrize("adapter", CREATES)
def test_a_process_that_comes_after_goes_on(
    lane_of: Callable[..., Lane], provider: StandIn, adapter: str
) -> None:
    provider.behaviour.polls = 3
    items = chats("one", "two")
    first = lane_of(adapter)
    handle = first.submit(next(keys), items)
    while not provider.batches:
        first.poll(handle)

    second = lane_of(adapter)
    assert second.find(handle) == handle
    carry(second, handle)

    assert [said(answer) for answer in second.collect(handle, items)] == ["echo: one", "echo: two"]
    assert len(provider.batches) == 1


@pytest.mark.parametrize("adapter", WITH_FILES)
def test_an_intent_without_a_known_end_is_settled_and_not_sent_again(
    lane_of: Callable[..., Lane], provider: StandIn, tmp_path: Path, adapter: str
) -> None:
    """The state that a SIGKILL leaves between a create and its note."""
    items = chats("one")
    lane = lane_of(adapter)
    handle = lane.submit(next(keys), items)
    while not provider.batches:
        lane.poll(handle)
    database = Database.open(tmp_path / "router.db")
    with database.writing() as conn:
        conn.execute(update(lane_submissions).values(state="intended", provider_batch=None))
    database.close()

    carry(lane, handle)

    assert [said(answer) for answer in lane.collect(handle, items)] == ["echo: one"]
    assert len(provider.batches) == 1


def test_a_wrong_key_is_refused_in_words_that_do_not_hold_it(
    lane_of: Callable[..., Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG_KEY", "sk-secret-canary")
    lane = lane_of("openai-batch", api_key_env="WRONG_KEY")
    handle = lane.submit(next(keys), chats("one"))

    progress = carry(lane, handle)

    assert progress.refusal is not None
    assert "401" in progress.refusal.error_message
    assert "canary" not in progress.refusal.error_message
    assert "***" in progress.refusal.error_message


def test_items_of_two_endpoints_are_never_in_one_batch(
    lane_of: Callable[..., Lane], provider: StandIn
) -> None:
    items = chats("one")
    items.append(LaneItem(101, "/v1/responses", b'{"input":"two"}', 8))

    answers = run(lane_of("openai-batch"), items)

    assert said(answers[0]) == "echo: one"
    assert (answers[1].body, answers[1].is_retryable) == (None, True)
    assert provider.bought == Counter({"one": 1})


def test_what_a_provider_cannot_be_asked_is_refused_for_its_item_alone(
    lane_of: Callable[..., Lane], provider: StandIn
) -> None:
    items = chats("one")
    asked = {"messages": [{"role": "user", "content": "two"}], "logit_bias": {"5": 1}}
    items.append(LaneItem(101, CHAT, json.dumps(asked).encode(), 8))

    answers = run(lane_of("anthropic-batch"), items)

    assert said(answers[0]) == "echo: one"
    assert answers[1].error_code == "invalid_input"
    assert "logit_bias" in answers[1].error_message
    assert provider.bought == Counter({"one": 1})
