"""Batches on a real router: every kind of request, the price cap, retries, fallback, cancel."""

import io
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import RunningRouter, running_router

INITIAL_USD = Decimal(1000)
PRICE = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "label",
        "strict": True,
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["intent"],
            "properties": {"intent": {"type": "string", "enum": ["lost_card", "exchange_rate"]}},
        },
    },
}


def lane(provider: str, model: str, *, price: Mapping[str, str] = PRICE, **options: Any) -> Any:
    return {
        "provider": f"simulated-{provider}",
        "region": "global",
        "capacity_items": 100_000,
        "models": [{"name": model, **price, "tasks": ["responses", "embeddings"]}],
        "options": options,
    }


DEARER = {"input_usd_per_mtok": "0.30", "output_usd_per_mtok": "1.20"}
CONFIG = {
    "credits": {"initial_usd": str(INITIAL_USD)},
    "lanes": [
        lane("quick", "quick"),
        lane("slow", "slow", latency_s=1.5),
        lane("busy", "busy", rate_limit_rate=0.3, error_rate=0.1, retry_first_s=0.02),
        lane("strict", "strict", failure_rate=0.3),
        lane("refusing", "refusing", failure_rate=1.0),
        lane("down", "twice", is_down=True, retry_first_s=0.02),
        lane("spare", "twice", price=DEARER),
    ],
    "workflows": [
        {
            "slug": "label",
            "version": 1,
            "fields": [{"name": "text"}],
            "user": "Label this: {text}",
            "output_schema": SCHEMA["json_schema"]["schema"],
            "models": ["quick"],
        }
    ],
}


@pytest.fixture(scope="module")
def router() -> Iterator[RunningRouter]:
    with running_router(config=CONFIG) as router:
        yield router


@pytest.fixture
def client(router: RunningRouter) -> Iterator[Client]:
    with Client(router.settings()) as client:
        yield client


def chat_lines(count: int, *, user: str = "Somebody took my card, item {}") -> list[dict[str, Any]]:
    return [
        {
            "customer_item_id": f"row-{nth}",
            "operation": "responses",
            "input": {
                "messages": [{"role": "user", "content": user.format(nth)}],
                "response_format": SCHEMA,
            },
        }
        for nth in range(count)
    ]


def buy(
    client: Client, model: str, lines: Sequence[Mapping[str, Any]], **quote: Any
) -> tuple[str, Any]:
    manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="items.jsonl")
    asked = {"estimated_input_tokens": 200, "estimated_output_tokens": 64} | quote
    locked = client.quote_model([model], estimated_items=len(lines), **asked)
    body = {"quote_id": locked.quote_id, "input_file_id": file.file_id}
    return client.submit_batch(body).id, locked


def ended(client: Client, batch_id: str, *, within_s: float = 30) -> Any:
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        batch = client.retrieve_batch(batch_id, include_billing_receipt=True)
        if batch.is_terminal:
            return batch
        time.sleep(0.02)
    raise AssertionError(f"still {batch.state} with {batch.counts} after {within_s} s")


def artifact(client: Client, batch_id: str, *, partial: bool = False) -> list[dict[str, Any]]:
    held = io.BytesIO()
    client.download_artifact(batch_id, held, partial=partial)
    return [json.loads(line) for line in held.getvalue().splitlines()]


def credits_of(router: RunningRouter) -> tuple[int, int, int]:
    with sqlite3.connect(router.data_dir / "router.db") as conn:
        wanted = "SELECT balance_micro, reserved_micro, spent_micro FROM workspaces"
        row: tuple[int, int, int] = conn.execute(wanted).fetchone()
    conn.close()
    return row


def assert_money_adds_up(router: RunningRouter, batch: Any) -> None:
    balance, reserved, spent = credits_of(router)
    assert balance + reserved + spent == INITIAL_USD * 1_000_000
    told = batch.billing_receipt.credits
    assert told.charged.amount + told.released.amount == told.reserved.amount
    assert told.charged.amount <= batch.quoted_total.amount
    assert batch.settled_total.amount <= batch.quoted_total.amount


def test_a_small_batch_succeeds_and_is_paid_for(client: Client, router: RunningRouter) -> None:
    batch_id, _ = buy(client, "quick", chat_lines(20))
    batch = ended(client, batch_id)

    assert batch.state == "succeeded"
    assert batch.counts.completed == 20
    assert_money_adds_up(router, batch)


def test_the_artifact_has_the_manifests_lines_in_order(client: Client) -> None:
    lines = chat_lines(150)

    batch_id, _ = buy(client, "quick", lines)
    ended(client, batch_id)
    found = artifact(client, batch_id)

    assert [line["customer_item_id"] for line in found] == [
        line["customer_item_id"] for line in lines
    ]
    assert [line["sequence_no"] for line in found] == list(range(150))
    assert {line["provider"] for line in found} == {"simulated-quick"}
    content = found[0]["output"]["choices"][0]["message"]["content"]
    assert json.loads(content) == {"intent": "lost_card"}


def test_items_and_lanes_and_receipt_agree_on_the_cost(client: Client) -> None:
    batch_id, _ = buy(client, "quick", chat_lines(30))

    batch = ended(client, batch_id)

    items = sum(Decimal(line["cost"]["amount"]) for line in artifact(client, batch_id))
    settled = batch.settled_total.amount
    # Items round their own fee up to 10^-12 dollar; the total is rounded up to 10^-6.
    assert 0 <= settled - items < Decimal("0.000001") or items - settled < Decimal("1e-10")


def test_the_openai_dialect_is_answered_in_its_own_shape(client: Client) -> None:
    urls = {"/v1/chat/completions": "messages", "/v1/responses": "input"}
    for url, field in urls.items():
        asked = [{"role": "user", "content": "Where is it?"}]
        lines = [
            {"custom_id": f"c{nth}", "method": "POST", "url": url, "body": {field: asked}}
            for nth in range(3)
        ]

        batch_id, _ = buy(client, "quick", lines, max_output_tokens=64)
        ended(client, batch_id)
        found = artifact(client, batch_id)

        assert [line["custom_id"] for line in found] == ["c0", "c1", "c2"]
        assert found[0]["response"]["status_code"] == 200
        body = found[0]["response"]["body"]
        if field == "messages":
            text = body["choices"][0]["message"]["content"]
        else:
            text = body["output"][0]["content"][0]["text"]
        assert "Where is it?" in text


def test_embeddings_are_unit_vectors_of_the_wanted_size(client: Client) -> None:
    lines = [
        {
            "customer_item_id": f"e{nth}",
            "operation": "embeddings",
            "input": {"input": f"text {nth}", "dimensions": 8},
        }
        for nth in range(3)
    ]

    batch_id, _ = buy(client, "quick", lines, task="embeddings", estimated_output_tokens=0)
    ended(client, batch_id)

    for line in artifact(client, batch_id):
        vector = line["output"]["data"][0]["embedding"]
        assert len(vector) == 8
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-6)


def test_a_workflow_answers_with_the_object_itself(client: Client) -> None:
    lines = [
        {"customer_item_id": "w0", "input": {"text": "What is the exchange rate?"}},
        {"customer_item_id": "w1", "input": {"text": "My card is lost"}},
    ]
    manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="items.jsonl")
    quote = client.quote_workflow("label@v1", estimated_items=2)

    batch = client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id})
    ended(client, batch.id)

    outputs = [line["output"] for line in artifact(client, batch.id)]
    assert outputs == [{"intent": "exchange_rate"}, {"intent": "lost_card"}]


def test_rate_limits_and_errors_are_retried(client: Client) -> None:
    batch_id, _ = buy(client, "busy", chat_lines(200))

    batch = ended(client, batch_id)

    attempts = Counter(line["attempt"] for line in artifact(client, batch_id))
    assert batch.counts.completed == 200
    assert attempts[1] < 200
    assert sum(attempts.values()) == 200


def test_refused_items_fail_alone_and_cost_nothing(client: Client, router: RunningRouter) -> None:
    batch_id, _ = buy(client, "strict", chat_lines(100))

    batch = ended(client, batch_id)

    failed = [line for line in artifact(client, batch_id) if line["status"] == "failed"]
    assert batch.state == "succeeded"
    assert 0 < len(failed) == batch.counts.failed < 100
    assert {line["error"]["code"] for line in failed} == {"content_policy"}
    assert {line["attempt"] for line in failed} == {1}
    assert {line["cost"]["amount"] for line in failed} == {"0.00"}
    assert_money_adds_up(router, batch)


def test_a_batch_in_which_nothing_succeeds_has_failed_and_is_free(
    client: Client, router: RunningRouter
) -> None:
    batch_id, _ = buy(client, "refusing", chat_lines(10))

    batch = ended(client, batch_id)

    assert batch.state == "failed"
    assert batch.counts.failed == 10
    assert batch.settled_total.amount == 0
    assert_money_adds_up(router, batch)


def test_a_lane_that_is_down_gives_way_at_the_same_price(
    client: Client, router: RunningRouter
) -> None:
    batch_id, quote = buy(client, "twice", chat_lines(40))
    selected = [lane.provider for lane in quote.quote_lanes if lane.selected]

    batch = ended(client, batch_id)

    assert selected == ["simulated-down"]
    assert batch.counts.completed == 40
    lines = artifact(client, batch_id)
    assert {line["provider"] for line in lines} == {"simulated-spare"}
    usage = lines[0]["usage"]
    locked = usage["input_tokens"] * Decimal("0.10") + usage["output_tokens"] * Decimal("0.40")
    assert Decimal(lines[0]["cost"]["amount"]) == locked * Decimal("1.059") / 1_000_000
    assert_money_adds_up(router, batch)


def test_nothing_is_sent_above_the_quote(client: Client, router: RunningRouter) -> None:
    # Answers have about nine tokens; the quote reckons with one.
    batch_id, _ = buy(
        client,
        "quick",
        chat_lines(300),
        estimated_input_tokens=90,
        estimated_output_tokens=0,
        max_output_tokens=64,
    )

    batch = ended(client, batch_id)

    codes = Counter(
        line["error"]["code"] for line in artifact(client, batch_id) if line["status"] == "failed"
    )
    assert batch.state == "succeeded"
    assert set(codes) == {"price_cap_reached"}
    assert batch.counts.completed + codes["price_cap_reached"] == 300
    assert batch.billing_receipt.credits.overrun.amount == 0
    assert_money_adds_up(router, batch)


def test_a_cancelled_batch_bills_what_was_answered(client: Client, router: RunningRouter) -> None:
    # Chunks of 104 items, 16 of them at once: some are sent, most are not.
    batch_id, _ = buy(client, "slow", chat_lines(3_000), max_output_tokens=64_000)
    while client.retrieve_batch(batch_id).counts.running == 0:
        time.sleep(0.02)

    client.cancel_batch(batch_id)
    batch = ended(client, batch_id)

    counts = batch.counts
    assert batch.state == "cancelled"
    assert counts.cancelled > 0
    assert counts.completed > 0
    assert counts.completed + counts.cancelled == 3_000
    lines = artifact(client, batch_id, partial=True)
    assert len(lines) == 3_000
    by_status = Counter((line["error"] or {}).get("code") for line in lines)
    assert by_status == {None: counts.completed, "cancelled": counts.cancelled}
    assert_money_adds_up(router, batch)


def test_what_is_left_at_the_deadline_expires(client: Client, router: RunningRouter) -> None:
    batch_id, _ = buy(client, "slow", chat_lines(3_000), max_output_tokens=64_000)
    while client.retrieve_batch(batch_id).counts.running == 0:
        time.sleep(0.02)

    with sqlite3.connect(router.data_dir / "router.db", timeout=30) as conn:
        conn.execute("UPDATE batches SET deadline_at = created_at WHERE id = ?", (batch_id,))
    conn.close()
    batch = ended(client, batch_id)

    assert batch.state == "succeeded"
    codes = Counter((line["error"] or {}).get("code") for line in artifact(client, batch_id))
    assert codes == {None: batch.counts.completed, "expired": batch.counts.failed}
    assert batch.counts.failed > 0
    assert_money_adds_up(router, batch)


def test_the_same_items_get_the_same_answers_again(client: Client) -> None:
    outputs: list[list[Any]] = []
    for _ in range(2):
        batch_id, _ = buy(client, "busy", chat_lines(60))
        ended(client, batch_id)
        outputs.append([(line["output"], line["usage"]) for line in artifact(client, batch_id)])

    assert outputs[0] == outputs[1]


def test_one_folder_has_one_router(router: RunningRouter) -> None:
    other = RunningRouter(
        router.data_dir, options=["--port", "0"], log_path=router.data_dir / "second.log"
    )
    address = (router.data_dir / "address").read_text()

    with pytest.raises(Exception, match="another router serves"):
        other.start()

    (router.data_dir / "address").write_text(address)
