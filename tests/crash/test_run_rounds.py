"""Retry rounds: what failed is sent again inside the budget, once, and one table lands."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from batchrouter import Run
from batchrouter.errors import BatchFailedError, RunCancelledError
from batchrouter.run import Done, Receipt, Waiting, cancel_run
from batchrouter.testing import FaultProxy
from crash.desk import Desk, refusal, wait_until
from crash.doctoring import Line, doctor_lines, failed, unfitting

Change = Callable[[int, Line], Line | bytes | None]
INTENT = {"intent": {"type": "string", "enum": ["card", "transfer"]}}
SLOW = {"models": ["slow"]}
"""A lane whose batches are open when `advance` looks at them."""

TYPED = {
    "kind": "chat",
    "user": "{text}",
    "output": INTENT,
    "parameters": {"max_output_tokens": 8},
}


def bought(desk: Desk, change: Change, **changes: Any) -> Run:
    """Buy the first round, and change what the router will give for it."""
    run = desk.open(changes=changes)
    run.submit()
    doctor_last(desk, change)
    return run


def doctor_last(desk: Desk, change: Change) -> None:
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    doctor_lines(desk.router, desk.batches()[0].id, change)


def some_fail(number: int, line: Line) -> Line | None:
    """Item 2 fails, item 5 has no line, and all others are answered."""
    if number == 5:
        return None
    return failed(line) if number == 2 else line


def sent(desk: Desk) -> list[dict[str, str]]:
    """The metadata of each batch at the router, the first one first."""
    return [batch.metadata for batch in reversed(desk.batches())]


def statuses(desk: Desk) -> list[str]:
    return [row["_status"] for row in sorted(desk.rows(), key=lambda row: row["id"])]


def test_failed_and_missing_items_are_sent_again_and_one_table_lands(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1, route=SLOW)
    first = desk.batches()[0]

    step = run.advance()
    assert isinstance(step, Waiting)
    assert len(step.batch_ids) == 1
    receipt = run.execute(timeout_s=20)

    assert receipt.rows["succeeded"] == receipt.row_count == 10
    assert (receipt.outcome, receipt.batch_count) == ("landed", 2)
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10), (1, 2)]
    assert receipt.rounds_ended == ""
    assert receipt.quoted_usd == sum(each.quoted_usd for each in receipt.rounds)
    assert receipt.settled_usd == sum(each.settled_usd or 0 for each in receipt.rounds)
    rows = sorted(desk.rows(), key=lambda row: row["id"])
    again = [row["id"] for row in rows if row["_batch_id"] != first.id]
    assert again == [2, 5]
    assert [each.get("batchrouter_round") for each in sent(desk)] == [None, "1"]
    assert all(row["output"] and row["_error_code"] is None for row in rows)


def test_a_trial_of_a_few_rows_has_its_rounds(desk: Desk) -> None:
    run = desk.open(changes={"retry_failed": 1}, limit=6)
    desk.run_key = f"{desk.run_key}~limit-6"
    run.submit()
    doctor_last(desk, some_fail)

    receipt = run.execute(timeout_s=20)

    assert receipt.rows["succeeded"] == receipt.row_count == 6
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 6), (1, 2)]
    assert "/sample" in receipt.location


def test_a_run_without_rounds_lands_what_came(desk: Desk) -> None:
    receipt = bought(desk, some_fail).execute(timeout_s=20)

    assert (receipt.rows["failed"], receipt.rows["missing"], receipt.batch_count) == (1, 1, 1)
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10)]


def test_a_clean_run_buys_no_round(desk: Desk) -> None:
    receipt = desk.open(changes={"retry_failed": 3, "retry_invalid": 3}).execute(timeout_s=20)

    assert receipt.batch_count == 1
    assert receipt.rounds_ended == ""


def test_an_answer_that_does_not_fit_is_bought_again_only_on_demand(desk: Desk) -> None:
    def change(number: int, line: Line) -> Line:
        return unfitting(line) if number in {1, 2} else failed(line) if number == 3 else line

    run = bought(desk, change, request=TYPED, retry_invalid=1)
    receipt = run.execute(timeout_s=20)

    assert (receipt.rows["succeeded"], receipt.rows["failed"]) == (9, 1)
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10), (1, 2)]
    paid = sum((row["_cost_usd"] or Decimal(0) for row in desk.rows()), Decimal(0))
    by_id = {row["id"]: row["_cost_usd"] for row in desk.rows()}
    assert by_id[1] > by_id[0]
    assert receipt.settled_usd is not None
    assert paid <= receipt.settled_usd


def test_rounds_go_on_until_they_are_used_up(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=2, route=SLOW)
    assert isinstance(run.advance(), Waiting)
    doctor_last(desk, lambda _, line: failed(line, "provider_timeout"))
    assert isinstance(run.advance(), Waiting)
    doctor_last(desk, lambda number, line: failed(line, "content_policy") if number else line)
    receipt = run.execute(timeout_s=20)

    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10), (1, 2), (2, 2)]
    assert receipt.error_codes == {"content_policy": 1}
    assert statuses(desk) == ["succeeded"] * 5 + ["failed"] + ["succeeded"] * 4


def test_a_round_in_which_all_fails_keeps_what_was_told_before(desk: Desk) -> None:
    run = desk.open("refusing", changes={"retry_failed": 1})

    with pytest.raises(BatchFailedError):
        run.execute(timeout_s=20)

    assert [each.get("batchrouter_round") for each in sent(desk)] == [None, "1"]


def test_a_cancel_by_its_names_is_heard_between_rounds_of_which_all_fails(desk: Desk) -> None:
    run = desk.open("refusing", changes={"retry_failed": 1})
    run.submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    with pytest.raises(BatchFailedError):
        run.land()  # hears of the end, and begins no round

    assert cancel_run("label", desk.run_key, settings=desk.settings(), grace_s=0)

    with pytest.raises(RunCancelledError):
        run.execute(timeout_s=20)
    assert len(desk.batches()) == 1


def test_a_round_above_the_budget_is_not_bought_and_the_receipt_says_so(desk: Desk) -> None:
    bought(desk, some_fail, retry_failed=1)
    short = desk.open(changes={"retry_failed": 1}, max_run_usd=Decimal("0.000001"))

    receipt = short.execute(timeout_s=20)

    assert (receipt.outcome, receipt.batch_count) == ("landed", 1)
    assert (receipt.rows["failed"], receipt.rows["missing"]) == (1, 1)
    assert "above the budget" in receipt.rounds_ended
    assert len(json.dumps(receipt.to_dict())) < 2000
    assert desk.open(changes={"retry_failed": 1}).execute().batch_count == 1


def test_a_round_that_nobody_sells_any_more_is_given_up(desk: Desk, proxy: FaultProxy) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    proxy.answer("POST", "/v1/quotes/model", status=400, body=refusal("no_eligible_lane"), nth=1)

    receipt = run.execute(timeout_s=20)

    assert receipt.batch_count == 1
    assert "no_eligible_lane" in receipt.rounds_ended


def test_the_reply_to_a_round_is_lost_and_it_is_bought_once(desk: Desk, proxy: FaultProxy) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    proxy.drop_reply("POST", "/v1/batches", nth=1)

    receipt = run.execute(timeout_s=20)

    assert (receipt.batch_count, len(desk.batches())) == (2, 2)
    assert receipt.rows["succeeded"] == 10


def test_a_lost_folder_finds_its_rounds_again(desk: Desk) -> None:
    changes = {"retry_failed": 1}
    bought(desk, some_fail, **changes).execute(timeout_s=20)
    rows = desk.rows()
    shutil.rmtree(desk.root / "runs")

    receipt = desk.open(changes=changes).execute(timeout_s=20)

    assert (receipt.batch_count, len(desk.batches())) == (2, 2)
    assert desk.rows() == rows


def test_landing_again_lands_all_rounds_and_buys_nothing(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    run.execute(timeout_s=20)
    rows = desk.rows()
    shutil.rmtree(desk.root / "labelled")

    again = desk.open(changes={"retry_failed": 1}).land(again=True)

    assert (again.rows["succeeded"], len(desk.batches())) == (10, 2)
    assert desk.rows() == rows


def test_land_by_itself_begins_no_round(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1)

    receipt = run.land()

    assert (receipt.batch_count, receipt.rows["failed"], receipt.rows["missing"]) == (1, 1, 1)


def test_a_cancel_between_rounds_lands_what_came(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    assert run.cancel()

    receipt = run.execute(timeout_s=20)

    assert (receipt.batch_count, receipt.rows["succeeded"]) == (1, 8)


def test_a_cancel_in_a_round_keeps_what_was_told_before(desk: Desk) -> None:
    changes = {"retry_failed": 1, "route": SLOW}
    run = bought(desk, some_fail, **changes)
    assert isinstance(run.advance(), Waiting)
    run.cancel()

    receipt = run.execute(timeout_s=20)

    assert receipt.batch_count == 2
    assert receipt.outcome == "partial"
    told = statuses(desk)
    assert (told[2], told[5]) in {("failed", "missing"), ("succeeded", "succeeded")}
    assert len(desk.batches()) == 2


def test_parts_and_equal_requests_in_a_round(desk: Desk) -> None:
    def change(number: int, line: Line) -> Line:
        return failed(line) if number % 2 else line

    changes = {
        "retry_failed": 1,
        "parts": {"max_items": 4},
        "dedupe": True,
        "request": {**TYPED, "user": "static {text}"},
    }
    run = desk.open(changes=changes)
    run.submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    for batch in desk.batches():
        doctor_lines(desk.router, batch.id, change)

    receipt = run.execute(timeout_s=20)

    assert receipt.rows["succeeded"] == 10
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10), (1, 5)]
    assert Counter(each.get("batchrouter_round") for each in sent(desk)) == {None: 3, "1": 2}


@pytest.mark.parametrize("damage", [b"", b"no zstd at all"])
def test_packed_manifests_are_sent_and_resent_as_lines(desk: Desk, damage: bytes) -> None:
    parts = {"max_items": 6, "compression": "zstd"}
    changes = {"retry_failed": 2, "route": SLOW, "parts": parts}
    run = desk.open(changes=changes)
    run.submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    for batch in desk.batches():
        doctor_lines(desk.router, batch.id, some_fail)
    assert isinstance(run.advance(), Waiting)
    doctor_last(desk, lambda _, line: failed(line))
    paths = sorted(desk.root.glob("runs/label/*/manifest/*"))
    assert [path.name[-10:] for path in paths] == [".jsonl.zst"] * 3
    for path in paths if damage else ():
        path.write_bytes(damage)

    receipt = run.execute(timeout_s=20)

    assert len(desk.batches()) == (3 if damage else 4)
    assert receipt.rows["succeeded"] == (7 if damage else 10)
    assert ("damaged" in receipt.rounds_ended) is bool(damage)


def test_a_round_takes_only_what_a_journal_of_its_version_tells(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    run.execute(timeout_s=20)

    told = [fact for fact in desk.facts() if fact["type"] == "round_built"]

    assert [(fact["generation"], fact["round"]) for fact in told] == [(0, 1)]
    assert told[0]["manifest"]["item_count"] == 2
    paths = sorted(desk.root.glob("runs/label/*/journal/*.json"))
    assert {json.loads(path.read_text())["version"] for path in paths} == {2}


def test_a_damaged_manifest_ends_the_rounds_and_what_came_is_landed(desk: Desk) -> None:
    run = bought(desk, some_fail, retry_failed=1)
    [path] = desk.root.glob("runs/label/*/manifest/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"number 3", b"number 9"))

    receipt = run.execute(timeout_s=20)

    assert (receipt.batch_count, receipt.rows["failed"]) == (1, 1)
    assert "damaged" in receipt.rounds_ended


def test_two_attempts_at_a_round_buy_it_once(desk: Desk) -> None:
    bought(desk, some_fail, retry_failed=1)
    receipts: list[Receipt] = []

    def carry() -> None:
        receipts.append(desk.open(changes={"retry_failed": 1}).execute(timeout_s=30))

    threads = [threading.Thread(target=carry) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [each.rows["succeeded"] for each in receipts] == [10, 10, 10]
    assert len(desk.batches()) == 2


def test_more_rounds_are_allowed_while_the_run_is_not_landed(desk: Desk) -> None:
    bought(desk, some_fail)

    receipt = desk.open(changes={"retry_failed": 1}).execute(timeout_s=20)

    assert receipt.batch_count == 2
    done = desk.open(changes={"retry_failed": 5}).advance()
    assert isinstance(done, Done)
    assert len(desk.batches()) == 2
