"""Every method, with both clients, against the real router."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from batchrouter.api.client import Client
from batchrouter.api.models import Batch, Quote
from batchrouter.api.settings import Settings
from batchrouter.errors import AuthError, BadRequestError, ConflictError, NotFoundError

ITEMS = 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "questions.jsonl"
    lines = (
        {
            "customer_item_id": f"item-{number}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": f"Say {number}"}]},
        }
        for number in range(ITEMS)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def quote_for(call: Callable[..., Any], items: int = ITEMS, **options: Any) -> Quote:
    return call("quote_model", ["gpt-4o-mini", "claude-haiku-4"], estimated_items=items, **options)


def buy(call: Callable[..., Any], manifest: Path, **options: Any) -> Batch:
    quote = quote_for(call)
    uploaded = call("upload_manifest", manifest)
    body = {"quote_id": quote.quote_id, "input_file_id": uploaded.file_id}
    return call("submit_batch", {**body, **options}, idempotency_key=uuid4().hex)


def ended(call: Callable[..., Any], batch_id: str) -> Batch:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        batch = call("retrieve_batch", batch_id, include_billing_receipt=True)
        if batch.is_terminal:
            return batch
        time.sleep(0.1)
    raise AssertionError(f"{batch_id} did not end in a minute")


def test_the_whole_way_from_quote_to_artifact(
    call_router: Any, manifest: Path, tmp_path: Path
) -> None:
    bought = buy(call_router, manifest, metadata={"run": "r-1"})
    done = ended(call_router, bought.id)
    link = call_router("download_artifact", bought.id, tmp_path / "a.jsonl")

    assert not bought.is_terminal
    assert bought.metadata == {"run": "r-1"}
    assert (done.state, done.has_output) == ("succeeded", True)
    assert done.counts is not None
    assert (done.counts.total, done.counts.completed) == (ITEMS, ITEMS)
    assert done.settled_total is not None
    assert done.quoted_total is not None
    assert Decimal(0) < done.settled_total.amount <= done.quoted_total.amount
    assert done.billing_receipt is not None
    assert done.billing_receipt.credits is not None
    assert done.billing_receipt.settled_price is not None
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["sequence_no"] for line in lines] == list(range(ITEMS))
    assert link.bytes == (tmp_path / "a.jsonl").stat().st_size


def test_a_quote_is_priced_and_dated_by_the_server(call_router: Any) -> None:
    quote = quote_for(
        call_router,
        items=50_000,
        max_price="1000",
        estimated_input_tokens=420,
        estimated_output_tokens=64,
        max_output_tokens=128,
        allow_split=True,
        sla_tier="standard",
        metadata={"a": "b"},
    )

    assert quote.dropped_fields == ()
    assert quote.item_count == 50_000
    price = quote.pricing_estimate
    assert price.provider_subtotal is not None
    assert price.batchrouter_fee is not None
    assert price.total == price.provider_subtotal + price.batchrouter_fee
    assert price.total <= quote.quoted_total.amount < price.total + Decimal("0.000001")
    assert quote.server_now is not None
    # `Date` has whole seconds, and uvicorn renews it once a second.
    assert timedelta(seconds=590) < quote.expires_at - quote.server_now <= timedelta(seconds=605)
    assert any(lane.selected for lane in quote.quote_lanes)
    assert quote.routing_explanation is not None
    assert quote.routing_explanation.summary


def test_a_workflow_quote_names_the_version(call_router: Any) -> None:
    quote = call_router("quote_workflow", "classify-support-tickets@v3", estimated_items=12_000)

    assert quote.kind == "workflow"
    assert quote.workflow is not None
    assert (quote.workflow.slug, quote.workflow.version) == ("classify-support-tickets", 3)


def test_an_upload_tells_what_is_in_the_file(call_router: Any, manifest: Path) -> None:
    seen: list[tuple[int, int]] = []

    uploaded = call_router("upload_manifest", manifest, on_progress=lambda *at: seen.append(at))

    assert (uploaded.filename, uploaded.item_count) == ("questions.jsonl", ITEMS)
    assert uploaded.bytes == manifest.stat().st_size
    assert uploaded.dialect == "native"
    assert seen[-1] == (uploaded.bytes, uploaded.bytes)


def test_a_bad_line_is_named(call_router: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\nnot json\n")

    with pytest.raises(BadRequestError) as caught:
        call_router("upload_manifest", tmp_path / "bad.jsonl")

    assert caught.value.code == "invalid_manifest"
    assert {issue["line"] for issue in caught.value.details["issues"]} >= {1}


def test_a_create_sent_twice_under_one_key_is_one_batch(call_router: Any, manifest: Path) -> None:
    uploaded = call_router("upload_manifest", manifest)
    body = {"quote_id": quote_for(call_router).quote_id, "input_file_id": uploaded.file_id}
    key = uuid4().hex

    first = call_router("submit_batch", body, idempotency_key=key)
    second = call_router("submit_batch", body, idempotency_key=key)

    assert (first.id, first.replayed, second.replayed) == (second.id, False, True)
    with pytest.raises(ConflictError) as caught:
        call_router("submit_batch", body)
    assert caught.value.code == "quote_lock_already_accepted"
    assert caught.value.details["batch_id"] == first.id


def test_the_list_is_paged_and_filtered(call_router: Any, manifest: Path) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    mine = [buy(call_router, manifest).id for _ in range(3)]
    for batch_id in mine:
        ended(call_router, batch_id)

    first = call_router("list_batches", limit=2)
    second = call_router("list_batches", limit=2, after=first.next_cursor)
    summary = call_router(
        "list_batches", state=("succeeded",), updated_after=began, view="summary", limit=1000
    )
    none = call_router("list_batches", updated_after=datetime.now(UTC) + timedelta(hours=1))

    assert [batch.id for batch in (*first.data, *second.data)][:3] == mine[::-1]
    assert first.has_more
    assert {batch.id for batch in summary.data} >= set(mine)
    assert {batch.state for batch in summary.data} == {"succeeded"}
    assert none.data == ()


def test_a_batch_that_has_ended_cannot_be_cancelled(call_router: Any, manifest: Path) -> None:
    bought = buy(call_router, manifest)
    ended(call_router, bought.id)

    with pytest.raises(ConflictError, match="batch_not_cancellable"):
        call_router("cancel_batch", bought.id)


def test_a_batch_is_cancelled(call_router: Any, manifest: Path) -> None:
    bought = buy(call_router, manifest)
    try:
        asked = call_router("cancel_batch", bought.id)
    except ConflictError:
        assert ended(call_router, bought.id).state == "succeeded", "it was faster than the cancel"
    else:
        assert asked.state in {"cancelling", "cancelled"}
        assert ended(call_router, bought.id).state in {"cancelled", "succeeded"}


def test_an_artifact_url_opens_without_a_key(
    call_router: Any, router: Settings, manifest: Path
) -> None:
    bought = buy(call_router, manifest)
    ended(call_router, bought.id)

    link = call_router("artifact_url", bought.id)

    assert link.url.startswith(router.base_url)
    assert link.url not in repr(link)
    assert link.expires_at is not None
    assert link.expires_at > datetime.now(UTC)


@pytest.mark.parametrize("method", ["retrieve_batch", "artifact_url", "cancel_batch"])
def test_an_unknown_batch_is_not_found(call_router: Any, method: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        call_router(method, "batch_" + "0" * 32)

    assert caught.value.code == "batch_not_found"
    assert caught.value.request_id


def test_a_wrong_key_is_told_so(router: Settings) -> None:
    with Client(router, api_key="bk_live_wrong") as client, pytest.raises(AuthError) as caught:
        client.list_batches()

    assert caught.value.code == "unauthorized"
    assert "BATCHROUTER_API_KEY" in str(caught.value)
    assert "bk_live_wrong" not in str(caught.value)


def test_the_servers_clock_is_read(call_router: Any) -> None:
    now = call_router("server_time")

    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)
