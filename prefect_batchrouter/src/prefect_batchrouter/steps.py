"""The steps of a run as plain functions: what each task does, and what it hands on.

Handed on are ids, counts and money, under 2 KB: never rows, never secrets.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from batchrouter.money import format_usd
from prefect_batchrouter.planning import Plan

if TYPE_CHECKING:
    from batchrouter import Run
    from batchrouter.run import Progress, QuoteSummary

Told = dict[str, Any]

SHOWN = 8
LONGEST_WAIT = timedelta(hours=72)
"""No SLA tier is longer than 48 hours; a day is left for settling."""


@contextmanager
def opened(plan: Plan, on_progress: "Callable[[Progress], None] | None" = None) -> "Generator[Run]":
    """Open the run and close its connections again."""
    run = plan.open(on_progress)
    try:
        yield run
    finally:
        run.close()


def has_bought(plan: Plan) -> bool:
    """True when there is nothing to quote: the run is past its first purchase."""
    with opened(plan) as run:
        return run.status().stage not in {"opened", "built"}


def quote(plan: Plan) -> Told:
    """Lock a price for what is still to buy; see `Run.quote`."""
    with opened(plan) as run:
        return {"job": plan.job.name, "run_key": plan.run_key, **_told_quote(run.quote())}


def submit(plan: Plan) -> Told:
    """Buy what is not bought yet; see `Run.submit`."""
    with opened(plan) as run:
        batch_ids = run.submit()
        status = run.status()
    return {
        "job": plan.job.name,
        "run_key": plan.run_key,
        "batch_ids": list(batch_ids[:SHOWN]),
        "batch_count": len(batch_ids),
        "item_count": status.item_count,
        "committed_usd": format_usd(status.committed_usd),
    }


def advance(plan: Plan, on_progress: "Callable[[Progress], None] | None" = None) -> Told:
    """Do all that can be done now; see `Run.advance`.

    Returns:
        ``bought``: the batches that this call has bought; and either ``waiting`` with
        ``batch_ids`` and ``deadline_at``, or ``receipt``, with ``is_new`` when this call
        has landed the table.
    """
    from batchrouter import Done  # noqa: PLC0415 - loads the tables' libraries

    with opened(plan, on_progress) as run:
        before = run.status()
        step = run.advance()
        bought = [each for each in run.status().batch_ids if each not in before.batch_ids]
    told: Told = {"bought": bought[:SHOWN]}
    if isinstance(step, Done):
        return told | {"receipt": step.receipt.to_dict(), "is_new": before.stage != "landed"}
    deadline_at = step.deadline_at.isoformat()
    return told | {"waiting": {"batch_ids": list(step.batch_ids), "deadline_at": deadline_at}}


def land(plan: Plan, *, again: bool = False) -> Told:
    """Write the table; see `Run.land`."""
    with opened(plan) as run:
        return run.land(again=again).to_dict()


def cancel(plan: Plan, reason: str) -> Told:
    """Stop the run; see `Run.cancel`."""
    with opened(plan) as run:
        cancelled = run.cancel(reason)
        status = run.status()
    return {
        "job": plan.job.name,
        "run_key": plan.run_key,
        "cancelled": cancelled,
        "stage": status.stage,
    }


def seconds_to(moment: datetime) -> float:
    """Seconds until a wall-clock time, never negative."""
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _told_quote(quoted: "QuoteSummary") -> Told:
    lanes = [
        {
            "provider": lane.provider,
            "model": lane.model,
            "items": lane.items,
            "price_usd": format_usd(lane.price_usd),
        }
        for lane in quoted.lanes[:SHOWN]
    ]
    return {
        "total_usd": format_usd(quoted.total_usd),
        "committed_usd": format_usd(quoted.committed_usd),
        "budget_usd": None if quoted.budget_usd is None else format_usd(quoted.budget_usd),
        "fits": quoted.fits,
        "item_count": quoted.item_count,
        "row_count": quoted.row_count,
        "lanes": lanes,
        "why": quoted.why[:300],
        "expires_at": quoted.expires_at and quoted.expires_at.isoformat(),
    }
