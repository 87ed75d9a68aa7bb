"""Purchases that are settled, adopted, lost and bought anew, on a router behind a fault proxy."""

import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from batchrouter.errors import (
    BatchFailedError,
    BudgetExceededError,
    RunIdentityConflictError,
    TransportError,
    UnsettledIntentError,
    WaitTimeoutError,
)
from batchrouter.run import Waiting
from batchrouter.testing import FaultProxy, running_router
from crash.desk import CONFIG, Desk, refusal, wait_until


def test_a_rebuy_counts_what_the_earlier_generation_cost(desk: Desk) -> None:
    first = desk.open().execute(timeout_s=20)
    again = desk.open(on_rerun="rebuy")
    assert again.status().committed_usd == first.settled_usd

    receipt = again.execute(timeout_s=20)

    assert (receipt.generation, receipt.batch_count) == (1, 2)
    assert receipt.quoted_usd == 2 * first.quoted_usd
    assert len(desk.batches()) == 2
    assert len(desk.rows()) == 10
    with pytest.raises(BudgetExceededError, match="beside"):
        desk.open(on_rerun="rebuy", max_run_usd=first.quoted_usd).execute(timeout_s=20)
    assert len(desk.batches()) == 2


def test_a_rebuy_while_the_batch_is_open_attaches_to_it(desk: Desk) -> None:
    desk.open("slow").submit()

    receipt = desk.open("slow", on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.generation, receipt.batch_count) == (0, 1)


def test_a_rebuy_of_a_batch_that_ended_unseen_buys_anew(desk: Desk) -> None:
    desk.open("refusing").submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))

    run = desk.open("refusing", on_rerun="rebuy")

    assert run.status().generation == 1
    with pytest.raises(BatchFailedError):
        run.execute(timeout_s=20)
    assert len(desk.batches()) == 2


def test_a_rebuy_gets_past_a_batch_that_the_api_has_lost(
    desk: Desk, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Date is a second coarse.
    monkeypatch.setattr("batchrouter.run.outcome.JUST_CREATED_FOR", timedelta(seconds=-2))
    run = desk.open("long")
    run.submit()
    quoted = run.status().committed_usd
    gone = proxy.answer(
        "GET", "/v1/batches/batch_*", status=404, body=refusal("batch_not_found"), times=100
    )
    with pytest.raises(BatchFailedError, match="no longer knows"):
        run.advance()
    again = desk.open("long", on_rerun="rebuy")
    proxy.forget_rules()

    assert gone.status == 404
    assert again.status().generation == 1
    assert again.status().committed_usd == quoted, "it may be billed all the same"


def test_a_404_on_a_young_batch_is_waited_out(desk: Desk, proxy: FaultProxy) -> None:
    proxy.answer("GET", "/v1/batches/batch_*", status=404, body=refusal("batch_not_found"), times=2)

    receipt = desk.open().execute(timeout_s=30)

    assert receipt.batch_count == 1


def test_a_named_batch_that_is_not_shown_yet_is_adopted_once_it_is(
    desk: Desk, proxy: FaultProxy
) -> None:
    desk.open().execute(timeout_s=20)
    shutil.rmtree(desk.root / "runs")
    proxy.answer("GET", "/v1/batches/batch_*", status=404, body=refusal("batch_not_found"))

    receipt = desk.open().execute(timeout_s=20)

    assert len(desk.batches()) == receipt.batch_count == 1
    assert [fact["how"] for fact in desk.facts() if fact["type"] == "bought"] == ["adopted"]


def test_a_lost_folder_and_another_model_buy_nothing_more(desk: Desk) -> None:
    desk.open("quick").execute(timeout_s=20)
    shutil.rmtree(desk.root / "runs")

    with pytest.raises(RunIdentityConflictError, match="route"):
        desk.open("slow").execute(timeout_s=20)

    assert len(desk.batches()) == 1


def test_a_key_that_stands_for_a_foreign_batch_is_a_conflict(desk: Desk, proxy: FaultProxy) -> None:
    foreign = Desk(desk.root, desk.router, desk.base_url)
    foreign.open().submit()
    [theirs] = foreign.batches()
    foreign.close()
    proxy.answer(
        "POST",
        "/v1/batches",
        status=409,
        body=refusal("idempotency_key_reused", batch_id=theirs.id),
        times=2,
    )

    with pytest.raises(RunIdentityConflictError, match=theirs.id):
        desk.open().execute(timeout_s=20)

    assert desk.batches() == []


def test_a_purchase_that_nobody_can_tell_of_stops_the_run_until_a_person_has_looked(
    desk: Desk, proxy: FaultProxy
) -> None:
    accepted = refusal("quote_lock_already_accepted")
    proxy.answer("POST", "/v1/batches", status=409, body=accepted, times=2)
    for _ in range(2):
        with pytest.raises(UnsettledIntentError, match="batchrouter_run_id"):
            desk.open().execute(timeout_s=20)
    assert desk.batches() == []
    quoted = desk.open().status().committed_usd
    assert quoted > 0
    proxy.answer("POST", "/v1/batches", status=409, body=accepted)

    receipt = desk.open(on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.generation, receipt.rows["succeeded"]) == (1, 10)
    assert receipt.quoted_usd == 2 * quoted
    assert receipt.settled_usd is None, "of the first nobody knows"


def test_another_account_that_knows_nothing_of_the_purchase_buys_nothing(
    desk: Desk, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.drop_reply("POST", "/v1/batches", times=2)
    with pytest.raises(TransportError):
        desk.open().submit()

    with running_router(tmp_path / "other", config=CONFIG) as other:
        elsewhere = Desk(tmp_path, other, other.base_url)
        elsewhere.run_key = desk.run_key
        with pytest.raises(UnsettledIntentError, match="another base URL or key"):
            elsewhere.open().submit()
        elsewhere.close()
        assert elsewhere.batches() == []

    assert desk.open().execute(timeout_s=20).batch_count == 1
    assert len(desk.batches()) == 1


def test_an_upload_that_the_api_forgot_is_made_again(desk: Desk, proxy: FaultProxy) -> None:
    proxy.answer("POST", "/v1/batches", status=404, body=refusal("file_not_found"))

    receipt = desk.open().execute(timeout_s=20)

    assert proxy.count("POST", "/v1/batches/input-manifests") == 2
    assert len(desk.batches()) == receipt.batch_count == 1


def test_a_rebuy_waits_while_a_cancelled_purchase_may_still_come_about(
    desk: Desk, proxy: FaultProxy
) -> None:
    proxy.answer("POST", "/v1/batches", status=503, times=2)
    run = desk.open()
    with suppress(Exception):
        run.submit()
    run.cancel("enough")

    step = run.advance()
    assert isinstance(step, Waiting)
    assert step.batch_ids == (), "only time must pass"
    with pytest.raises(WaitTimeoutError, match="may still be until"):
        desk.open(on_rerun="rebuy")

    assert "generation_opened" not in {fact["type"] for fact in desk.facts()}
    assert desk.batches() == []
