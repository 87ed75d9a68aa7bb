"""What was cancelled or has expired: what came is landed, and the rest is bought on demand only."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from batchrouter.errors import BudgetExceededError
from batchrouter.run import prune_runs
from batchrouter.testing import FaultProxy
from crash.desk import Desk, refusal, wait_until
from crash.doctoring import Line, doctor_lines, failed, say_cancelled


def cut_short(desk: Desk, **changes: Any) -> None:
    """Buy all ten rows, and have the router say that it was cancelled with six of them done.

    Of the others, three have a line that says so, and one has no line at all.
    """

    def change(number: int, line: Line) -> Line | None:
        if number < 6:
            return line
        return None if number == 9 else failed(line, "cancelled")

    desk.open(changes=changes).submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    batch_id = desk.batches()[0].id
    doctor_lines(desk.router, batch_id, change)
    say_cancelled(desk.router, batch_id, completed=6)


def items(desk: Desk) -> list[int]:
    """How many items each batch has, the first one first."""
    return [batch.counts.total for batch in reversed(desk.batches())]


def test_what_came_of_a_cancelled_batch_is_landed_and_the_rest_is_missing(desk: Desk) -> None:
    cut_short(desk, retry_failed=3)

    receipt = desk.open(changes={"retry_failed": 3}).execute(timeout_s=20)

    assert (receipt.outcome, receipt.batch_count) == ("partial", 1), "no round sends it again"
    assert (receipt.rows["succeeded"], receipt.rows["missing"]) == (6, 4)
    assert receipt.error_codes == {"cancelled": 4}
    again = desk.open(changes={"retry_failed": 3}).execute(timeout_s=20)
    assert (again.rows, items(desk)) == (receipt.rows, [10])


@pytest.mark.parametrize("is_landed", [True, False])
@pytest.mark.parametrize("dedupe", [True, False])
def test_a_rebuy_buys_the_rest_alone(desk: Desk, *, is_landed: bool, dedupe: bool) -> None:
    changes = {"dedupe": dedupe, "retain": {"manifest": "until_landed"}}
    cut_short(desk, **changes)
    if is_landed:
        desk.open(changes=changes).execute(timeout_s=20)

    receipt = desk.open(changes=changes, on_rerun="rebuy").execute(timeout_s=20)

    assert items(desk) == [10, 4]
    assert (receipt.outcome, receipt.generation, receipt.batch_count) == ("landed", 1, 2)
    assert receipt.rows["succeeded"] == receipt.row_count == 10
    assert [(each.round, each.items) for each in receipt.rounds] == [(0, 10), (1, 4)]
    assert len({row["id"] for row in desk.rows()}) == 10
    assert list(desk.root.glob("runs/label/*/manifest/*")) == [], "nothing needs it any more"


def test_a_rebuy_of_the_rest_may_be_cut_short_itself(desk: Desk) -> None:
    cut_short(desk)
    slow = {"route": {"models": ["quick"]}}
    desk.open(changes=slow, on_rerun="rebuy").cancel("not now")
    first = desk.open(changes=slow).execute(timeout_s=20)
    assert (first.outcome, first.rows["succeeded"]) == ("partial", 6)

    receipt = desk.open(changes=slow, on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.outcome, receipt.generation, items(desk)) == ("landed", 2, [10, 4])
    assert receipt.rows["succeeded"] == 10


def test_the_rest_may_have_retry_rounds_of_its_own(desk: Desk) -> None:
    changes = {"retry_failed": 1}
    cut_short(desk, **changes)
    run = desk.open(changes=changes, on_rerun="rebuy")
    run.submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    doctor_lines(desk.router, desk.batches()[0].id, lambda n, line: line if n else failed(line))

    receipt = run.execute(timeout_s=20)

    assert items(desk) == [10, 4, 1]
    assert receipt.rows["succeeded"] == 10


def test_the_rest_above_the_budget_is_an_error_and_a_higher_one_goes_on(desk: Desk) -> None:
    cut_short(desk)
    desk.open().execute(timeout_s=20)
    with pytest.raises(BudgetExceededError, match="Nothing of it was bought"):
        desk.open(on_rerun="rebuy", max_run_usd=Decimal("0.000001")).execute(timeout_s=20)

    receipt = desk.open().execute(timeout_s=20)

    assert (receipt.rows["succeeded"], items(desk)) == (10, [10, 4])


def test_the_reply_to_the_rest_is_lost_and_it_is_bought_once(desk: Desk, proxy: FaultProxy) -> None:
    cut_short(desk)
    run = desk.open(on_rerun="rebuy")
    proxy.drop_reply("POST", "/v1/batches", nth=1)

    receipt = run.execute(timeout_s=20)

    assert (receipt.rows["succeeded"], items(desk)) == (10, [10, 4])


def test_a_part_that_was_never_bought_is_the_rest(desk: Desk, proxy: FaultProxy) -> None:
    """The second part's quote expired when the budget had become short."""
    changes = {"parts": {"max_items": 5}}
    proxy.answer("POST", "/v1/batches", status=409, body=refusal("quote_lock_expired"), nth=2)
    run = desk.open(changes=changes)

    def lower_the_cap(progress: Any) -> None:
        if progress.stage == "submit" and progress.done == 1:
            run._context.settings = run._context.settings.replace(max_run_usd=Decimal("0.000001"))

    run._context.tell = lower_the_cap
    with pytest.raises(BudgetExceededError, match="asked to cancel"):
        run.execute(timeout_s=20)
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    first = desk.batches()[0].counts.completed

    receipt = desk.open(changes=changes, on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.rows["succeeded"], receipt.outcome) == (10, "landed")
    if first:  # the cancel came too late: what it answered is kept
        assert items(desk) == [5, 10 - first]


def test_a_part_of_which_nothing_came_is_the_rest(desk: Desk) -> None:
    changes = {"parts": {"max_items": 5}}
    run = desk.open(changes=changes)
    _, second = run.submit()
    wait_until(lambda: all(batch.is_terminal for batch in desk.batches()))
    say_cancelled(desk.router, second, completed=0)
    receipt = run.execute(timeout_s=20)
    assert (receipt.outcome, receipt.rows["succeeded"]) == ("partial", 5)

    receipt = desk.open(changes=changes, on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.outcome, receipt.rows["succeeded"]) == ("landed", 10)
    assert items(desk) == [5, 5, 5]


def test_a_whole_run_is_bought_anew(desk: Desk) -> None:
    desk.open().execute(timeout_s=20)

    receipt = desk.open(on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.generation, items(desk)) == (1, [10, 10])


def test_a_changed_job_is_bought_anew(desk: Desk) -> None:
    cut_short(desk)
    other = {"request": {"kind": "chat", "user": "Say {text}"}}

    receipt = desk.open(changes=other, on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.generation, items(desk)) == (1, [10, 10])


def test_a_run_whose_files_were_pruned_is_bought_anew(desk: Desk) -> None:
    cut_short(desk)
    desk.open().execute(timeout_s=20)
    [pruned] = prune_runs(str(desk.root / "runs"), older_than=timedelta(0))
    assert "manifest" in pruned.removed

    receipt = desk.open(on_rerun="rebuy").execute(timeout_s=20)

    assert (receipt.rows["succeeded"], items(desk)) == (10, [10, 10])
