"""Runs that wait on a real router: cancelled, over budget, in parts, without it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchrouter import Client, Receipt, Run
from batchrouter.errors import (
    AuthError,
    BudgetExceededError,
    RunCancelledError,
    WaitTimeoutError,
)
from batchrouter.run import Progress
from batchrouter.testing import FaultProxy, running_router
from crash.desk import CONFIG, Desk, refusal, wait_until


def in_parts(items: int) -> dict[str, Any]:
    return {"parts": {"max_items": items}}


def test_a_cancel_while_another_process_waits_lands_what_came_or_gives_up(desk: Desk) -> None:
    waiting = desk.open("long")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(waiting.execute, timeout_s=30)
        wait_until(lambda: bool(desk.batches()))
        assert desk.open("long").cancel("not wanted any more")
        with pytest.raises(RunCancelledError):
            ended.result()

    assert [batch.state for batch in desk.batches()] == ["cancelled"]
    assert not (desk.root / "labelled").exists()
    assert desk.open("long").status().stage == "cancelled"
    with pytest.raises(RunCancelledError):
        desk.open("long").execute(timeout_s=5)


def test_what_a_cancelled_run_had_finished_is_landed_as_partial(desk: Desk) -> None:
    # Chunks of about a hundred items, 16 of them at once: some are sent, most are not.
    rows = 3000
    table = pa.table({"id": list(range(rows)), "text": [f"card {row}" for row in range(rows)]})
    parameters = {"max_output_tokens": 64_000}
    request = {"kind": "chat", "user": "{text}", "parameters": parameters}
    job = desk.job("slow", source=table, request=request, budget="500.00")
    run = desk.open(job=job)
    [batch_id] = run.submit()
    with Client(run._context.settings) as client:
        wait_until(lambda: client.retrieve_batch(batch_id).counts.running > 0)

    assert desk.open(job=job).cancel("enough")
    receipt = run.execute(timeout_s=90)

    assert receipt.outcome == "partial"
    assert receipt.rows["succeeded"] > 0
    assert receipt.rows["missing"] == receipt.error_codes["cancelled"] > 0
    assert sum(receipt.rows.values()) == receipt.row_count == len(desk.rows()) == rows
    assert receipt.settled_usd is not None
    assert 0 < receipt.settled_usd < receipt.quoted_usd
    assert not run.cancel("too late")


def test_parts_under_one_budget_are_bought_and_landed_together(desk: Desk) -> None:
    receipt = desk.open(changes=in_parts(4)).execute(timeout_s=90)

    assert receipt.batch_count == len(desk.batches()) == 3
    assert receipt.outcome == "landed"
    assert receipt.rows["succeeded"] == 10
    assert receipt.quoted_usd == sum(batch.quoted_total.amount for batch in desk.batches())
    assert [row["id"] for row in desk.rows()] == list(range(10))


def test_parts_above_the_budget_together_are_not_bought_one_by_one(desk: Desk) -> None:
    one = desk.open(changes=in_parts(5)).quote().total_usd / 2

    with pytest.raises(BudgetExceededError, match="Nothing of it was bought"):
        desk.open(changes=in_parts(5), max_run_usd=one).execute(timeout_s=90)

    assert desk.batches() == []
    assert desk.open(changes=in_parts(5)).execute(timeout_s=90).outcome == "landed"


def stop_after_the_first_part(desk: Desk, proxy: FaultProxy, model: str) -> Run:
    """Let the first part through, and the second's quote expire when money has become short."""
    proxy.answer("POST", "/v1/batches", status=409, body=refusal("quote_lock_expired"), nth=2)
    run = desk.open(model, changes=in_parts(5))
    total = run.quote().total_usd
    settings = run._context.settings

    def lower_the_cap(progress: Progress) -> None:
        if progress.stage == "submit" and progress.done == 1:
            run._context.settings = settings.replace(max_run_usd=total * Decimal("0.9"))

    run._context.tell = lower_the_cap
    with pytest.raises(BudgetExceededError, match=r"accepted before \(batch_\w+\) is asked"):
        run.submit()
    assert desk.facts()[-1]["type"] == "stopped"
    assert len(desk.batches()) == 1
    return desk.open(model, changes=in_parts(5))


def test_a_run_that_stopped_at_the_budget_lands_what_finished_all_the_same(
    desk: Desk, proxy: FaultProxy
) -> None:
    refused = refusal("batch_not_cancellable")
    proxy.answer("POST", "/v1/batches/*/cancel", status=409, body=refused, times=100)

    receipt = stop_after_the_first_part(desk, proxy, "slow").execute(timeout_s=90)

    assert receipt.outcome == "partial"
    assert (receipt.rows["succeeded"], receipt.rows["missing"]) == (5, 5)
    assert len(desk.rows()) == 10
    assert len(desk.batches()) == 1


def test_a_run_that_stopped_at_the_budget_without_results_says_why(
    desk: Desk, proxy: FaultProxy
) -> None:
    run = stop_after_the_first_part(desk, proxy, "long")

    with pytest.raises(BudgetExceededError, match="nothing to land"):
        run.execute(timeout_s=90)

    assert [batch.state for batch in desk.batches()] == ["cancelled"]
    assert run.status().stage == "failed"


def test_a_key_that_may_not_cancel_still_lands_what_finishes(desk: Desk) -> None:
    key = desk.router.mint_key(["quote", "submit", "read"])
    run = desk.open("slow", api_key=key)
    run.submit()
    with pytest.raises(AuthError):
        run.cancel("enough")

    receipt = run.execute(timeout_s=90)

    assert receipt.outcome == "landed"
    assert receipt.rows["succeeded"] == 10


def test_aexecute_and_threads_share_the_watchers(desk: Desk) -> None:
    desks = [Desk(made(desk.root / str(nth)), desk.router, desk.base_url) for nth in range(4)]

    async def together() -> list[Receipt]:
        return await asyncio.gather(*(each.open("slow").aexecute() for each in desks[:2]))

    with ThreadPoolExecutor(2) as pool:
        threaded = [pool.submit(each.open("slow").execute) for each in desks[2:]]
        receipts = asyncio.run(together()) + [each.result(30) for each in threaded]

    assert [receipt.outcome for receipt in receipts] == ["landed"] * 4
    for each in desks:
        assert len(each.batches()) == 1
        each.close()


def test_a_wait_has_an_end_and_the_run_goes_on(desk: Desk) -> None:
    run = desk.open("slow")
    with pytest.raises(WaitTimeoutError):
        run.execute(timeout_s=0.3)
    with pytest.raises(WaitTimeoutError, match="has not ended"):
        run.land()

    assert desk.open("slow").execute(timeout_s=90).batch_count == 1


def test_a_trial_lands_in_its_own_folder(desk: Desk) -> None:
    receipt = desk.open(limit=3).execute(timeout_s=90)

    assert receipt.row_count == 3
    assert "/sample" in receipt.location
    assert not (desk.root / "labelled").exists()


@pytest.mark.parametrize("limit", [None, 3])
def test_a_run_that_lives_in_an_object_store_is_carried_on_from_there(
    desk: Desk, limit: int | None
) -> None:
    runs_url = f"memory://{desk.run_key}/runs"
    desk.open(runs_url=runs_url, limit=limit).submit()

    receipt = desk.open(runs_url=runs_url, limit=limit).execute(timeout_s=90)

    assert receipt.rows["succeeded"] == receipt.row_count == (limit or 10)
    assert receipt.location.startswith("memory://") == (limit is not None)
    assert desk.open(runs_url=runs_url, limit=limit).land(again=True).rows == receipt.rows
    assert not (desk.root / "runs").exists()


def test_a_router_killed_in_mid_batch_is_waited_for(desk: Desk, proxy: FaultProxy) -> None:
    with running_router(desk.root / "own", config=CONFIG) as own:
        proxy.upstream = own.base_url
        own_desk = Desk(desk.root, own, proxy.base_url)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(own_desk.open("slow").execute, timeout_s=60)
            wait_until(lambda: bool(own_desk.batches()))
            own.kill()
            time.sleep(0.5)
            own.start()
            receipt = ended.result(60)
        own_desk.close()
        assert len(own_desk.batches()) == 1

    assert receipt.rows["succeeded"] == 10


def made(path: Path) -> Path:
    path.mkdir()
    return path
