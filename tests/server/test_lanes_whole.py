"""Whole batches through a router whose lanes buy: split over three kinds, fallback, kills."""

import io
import json
import time
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import ROUTER_KILL_POINTS, RunningRouter, running_router
from server.stand_in import KEY, StandIn

PRICE = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}
DEARER = {"input_usd_per_mtok": "0.20", "output_usd_per_mtok": "0.80"}
DEAREST = {"input_usd_per_mtok": "0.30", "output_usd_per_mtok": "1.20"}
LANE_KILL_POINTS = (
    *(name for name in ROUTER_KILL_POINTS if name.startswith("lanes.") and "item" not in name),
    "work.before_result_stored",
    "work.after_result_stored",
)
ITEM_KILL_POINTS = ("lanes.before_item", "lanes.after_item")

NEVER_SENT = frozenset({"lanes.after_intent", "lanes.before_create", "lanes.mid_create"})
"""An intent stands in the book, and no create was sent."""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)


def lane(
    name: str,
    adapter: str,
    provider: StandIn,
    price: Mapping[str, str] = PRICE,
    capacity: int = 1000,
    **options: Any,
) -> dict[str, Any]:
    is_openai = adapter.startswith("openai")
    return {
        "provider": name,
        "adapter": adapter,
        "region": "eu",
        "capacity_items": capacity,
        "models": [{"name": "m", **price, "tasks": ["responses", "embeddings"]}],
        "options": {
            "base_url": provider.base_url if is_openai else provider.origin,
            "api_key_env": "STAND_IN_KEY",
            "poll_s": 0.1,
            "settle_s": 1.0,
        }
        | options,
    }


def config(*lanes: dict[str, Any]) -> dict[str, Any]:
    return {"credits": {"initial_usd": "100"}, "lanes": list(lanes)}


def buy(client: Client, texts: list[str]) -> str:
    lines = [
        {
            "customer_item_id": f"row-{nth}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": text}], "max_output_tokens": 64},
        }
        for nth, text in enumerate(texts)
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = client.upload_manifest(lambda: io.BytesIO(content), filename="items.jsonl")
    quote = client.quote_model(
        ["m"],
        estimated_items=len(texts),
        estimated_input_tokens=40,
        estimated_output_tokens=64,
        max_output_tokens=64,
    )
    return client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id}).id


def ended(client: Client, batch_id: str, *, within_s: float = 90.0) -> Any:
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        batch = client.retrieve_batch(batch_id, include_billing_receipt=True)
        if batch.is_terminal:
            return batch
        time.sleep(0.1)
    raise AssertionError(f"still {batch.state} with {batch.counts} after {within_s} s")


def artifact(client: Client, batch_id: str) -> list[dict[str, Any]]:
    held = io.BytesIO()
    client.download_artifact(batch_id, held)
    return [json.loads(line) for line in held.getvalue().splitlines()]


def assert_money_adds_up(batch: Any, lines: list[dict[str, Any]]) -> None:
    told = batch.billing_receipt.credits
    assert told.charged.amount + told.released.amount == told.reserved.amount
    assert told.charged.amount <= batch.quoted_total.amount
    items = sum(Decimal(line["cost"]["amount"]) for line in lines if line["cost"])
    assert abs(batch.settled_total.amount - items) < Decimal("0.000001")


def test_one_batch_is_split_over_three_kinds_of_lanes_and_merged(tmp_path: Path) -> None:
    with StandIn() as openai, StandIn() as anthropic, StandIn() as plain:
        served = config(
            lane("one", "openai-batch", openai, PRICE, capacity=20),
            lane("two", "anthropic-batch", anthropic, DEARER, capacity=20),
            lane("three", "openai-http", plain, DEAREST, capacity=20),
        )
        texts = [f"item {nth}" for nth in range(50)]
        with (
            running_router(tmp_path / "router", config=served) as router,
            Client(router.settings()) as client,
        ):
            batch_id = buy(client, texts)
            batch = ended(client, batch_id)
            lines = artifact(client, batch_id)
        assert batch.state == "succeeded"
        assert [line["customer_item_id"] for line in lines] == [f"row-{n}" for n in range(50)]
        told = [line["output"]["choices"][0]["message"]["content"] for line in lines]
        assert told == [f"echo: {text}" for text in texts]
        assert Counter(line["provider"] for line in lines) == {"one": 20, "two": 20, "three": 10}
        bought = openai.bought + anthropic.bought + Counter(plain.asked)
        assert bought == Counter(texts)
        assert_money_adds_up(batch, lines)
        written = b"".join(
            path.read_bytes() for path in (tmp_path / "router").rglob("*") if path.is_file()
        )
        assert KEY.encode() not in written


def test_what_an_expired_batch_left_goes_to_the_next_lane_at_the_locked_price(
    provider: StandIn, tmp_path: Path
) -> None:
    provider.behaviour.expire_after = 3
    texts = [f"item {nth}" for nth in range(8)]
    with StandIn() as other:
        served = config(
            lane("first", "openai-batch", provider, PRICE),
            lane("second", "mistral-batch", other, DEARER),
        )
        with (
            running_router(tmp_path / "router", config=served) as router,
            Client(router.settings()) as client,
        ):
            batch_id = buy(client, texts)
            batch = ended(client, batch_id)
            lines = artifact(client, batch_id)
        assert batch.counts.completed == 8
        # A chunk names one lane, the last; its items say what they were billed.
        assert other.bought == Counter(texts[3:])
        assert_money_adds_up(batch, lines)


def test_a_dead_provider_is_taken_out_and_the_quote_says_why(
    provider: StandIn, tmp_path: Path
) -> None:
    provider.behaviour.reject = 401
    served = config(
        lane("dead", "openai-batch", provider, PRICE),
        lane("alive", "openai-batch", provider, DEARER),
    )
    served["lanes"][1]["adapter"] = "openai-http"
    with (
        running_router(tmp_path / "router", config=served) as router,
        Client(router.settings()) as client,
    ):
        for _ in range(3):
            batch = ended(client, buy(client, ["hello"]))
            assert batch.counts.completed == 1
        quote = client.quote_model(["m"], estimated_items=1)
    reasons = {each.provider: each for each in quote.quote_lanes}
    assert reasons["alive"].selected
    assert reasons["dead"].rejection_code == "provider_unhealthy"
    assert "401" in reasons["dead"].reason


@pytest.mark.parametrize("point", ["lanes.after_create", "lanes.after_results_stored"])
@pytest.mark.parametrize("adapter", ["openai-batch", "anthropic-batch"])
def test_a_router_that_dies_there_buys_nothing_twice(
    provider: StandIn, tmp_path: Path, adapter: str, point: str
) -> None:
    _kill_and_go_on(provider, tmp_path, adapter, point)


@pytest.mark.drill
@pytest.mark.parametrize("point", LANE_KILL_POINTS)
@pytest.mark.parametrize("adapter", ["openai-batch", "mistral-batch", "anthropic-batch"])
def test_a_router_that_dies_anywhere_buys_nothing_twice(
    provider: StandIn, tmp_path: Path, adapter: str, point: str
) -> None:
    _kill_and_go_on(provider, tmp_path, adapter, point)


def _kill_and_go_on(provider: StandIn, tmp_path: Path, adapter: str, point: str) -> None:
    texts = [f"item {nth}" for nth in range(6)]
    served = config(lane("one", adapter, provider))
    env = {"BATCHROUTER_KILL_AT": point}
    with running_router(tmp_path / "router", config=served, env=env) as router:
        with Client(router.settings()) as client:
            batch_id = buy(client, texts)
            assert router.wait_for_death() == -9
            router.start()
        with Client(router.settings()) as client:
            if adapter == "anthropic-batch" and point in NEVER_SENT:
                _held_for_a_person(client, batch_id, provider, router)
                return
            batch = ended(client, batch_id)
            lines = artifact(client, batch_id)
    assert batch.counts.completed == 6
    assert provider.bought == Counter(texts)
    assert_money_adds_up(batch, lines)


def _held_for_a_person(
    client: Client, batch_id: str, provider: StandIn, router: RunningRouter
) -> None:
    """Nothing was sent, and without metadata nobody but a person can know that."""
    log = router.log_path
    ends_at = time.monotonic() + 30
    while "is held" not in log.read_text("utf-8"):
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    assert client.retrieve_batch(batch_id).state == "running"
    assert not provider.batches


@pytest.mark.parametrize(
    "point", ["lanes.after_item:3", "lanes.after_item:9", "lanes.before_item:6"]
)
def test_a_plain_lane_repeats_no_more_than_was_in_flight(
    provider: StandIn, tmp_path: Path, point: str
) -> None:
    texts = [f"item {nth}" for nth in range(20)]
    served = config(lane("plain", "openai-http", provider, concurrency=2))
    env = {"BATCHROUTER_KILL_AT": point}
    with running_router(tmp_path / "router", config=served, env=env) as router:
        with Client(router.settings()) as client:
            batch_id = buy(client, texts)
            assert router.wait_for_death() == -9
            router.start()
        with Client(router.settings()) as client:
            batch = ended(client, batch_id)
            lines = artifact(client, batch_id)
    assert batch.counts.completed == 20
    repeated = sum(times - 1 for times in Counter(provider.asked).values())
    assert repeated <= batch.billing_receipt.possibly_repeated <= 2
    assert_money_adds_up(batch, lines)
