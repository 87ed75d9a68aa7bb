"""The steps of a run as Prefect tasks, each beside an async twin with an `a` in front.

All take a job and an account in the same words, and any of them may be run again after any
death: the run's folder knows what is done. `run_batch_job` is the same as one flow; these are
for a flow of your own, with something of your own in between.

Tasks that ask the API or do work carry the tag ``batchrouter``, so that one limit on that tag
bounds them all; the waits do not, since a wait would hold its slot for hours.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task
from prefect.assets import add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from batchrouter.errors import WaitTimeoutError
from prefect_batchrouter import steps
from prefect_batchrouter.planning import Account, JobLike, OnRerun, Plan, plan_of
from prefect_batchrouter.policies import RETRIES, RETRY_DELAYS_S, RUN_STEP, is_retryable
from prefect_batchrouter.showing import (
    ProgressBar,
    asset_key,
    emit_batch_event,
    show_batches,
    show_quote,
    show_receipt,
)
from prefect_batchrouter.steps import LONGEST_WAIT, Told
from prefect_batchrouter.suspending import say_run
from prefect_batchrouter.waiting import wait_for_batches, wait_for_batches_async

TAG = "batchrouter"

_TRIED_AGAIN: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_DELAYS_S,
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_retryable,
}
_CACHED: dict[str, Any] = {**_TRIED_AGAIN, "cache_policy": RUN_STEP, "tags": {TAG}}
_FRESH: dict[str, Any] = {**_TRIED_AGAIN, "cache_policy": NO_CACHE, "tags": {TAG}}
_WAITING: dict[str, Any] = {**_TRIED_AGAIN, "cache_policy": NO_CACHE}


@task(name="quote-job", **_CACHED)
def quote_job(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
) -> Told:
    """Build the manifest and lock a price; nothing is bought. Shows the quote as a table.

    Args:
        job: The path of a job file, a mapping, a `Job` or a `BatchrouterJob` block.
        credentials: A block, the name of a saved one, or None for the job block's own, else
            the `BATCHROUTER_…` variables.
        params: Values for the job's parameters.
        run_key: What this execution is called; default: the outermost flow run, and `params`.
        runs_url: Where runs live; default: the account's.

    Returns:
        ``job, run_key, total_usd, committed_usd, budget_usd, fits, item_count, row_count,
        lanes, why, expires_at``; money as decimal text. The same after a resume: a price
        that a person approves stays as it was shown.

    Raises:
        SourceError, ManifestError: The table cannot be read, or a row is no request.
        APIError: No lane takes it, or another refusal.

    Example:
        >>> quote_job("label.yaml", credentials="prod")["total_usd"]       # doctest: +SKIP
        '12.407000'
    """
    quoted = steps.quote(_plan(job, credentials, params, run_key, runs_url))
    _tell_quote(quoted)
    show_quote(quoted)
    return quoted


@task(name="quote-job", **_CACHED)
async def aquote_job(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
) -> Told:
    """Do what `quote_job` does, off the event loop."""
    return await asyncio.to_thread(quote_job.fn, **locals())


@task(name="submit-job", **_CACHED)
def submit_job(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    at_most_usd: str | None = None,
) -> Told:
    """Buy what the run has not bought yet, inside the budget.

    Args:
        job: As `quote_job`, and so the other four.
        credentials: As `quote_job`.
        params: As `quote_job`.
        run_key: As `quote_job`.
        runs_url: As `quote_job`.
        on_rerun: ``rebuy`` buys anew what ended before, once in each flow run.
        at_most_usd: The run may cost no more, such as the quote that a person approved.

    Returns:
        ``job, run_key, batch_ids`` (the first eight), ``batch_count, item_count,
        committed_usd``.

    Raises:
        BudgetExceededError: The price is above the budget, or above `at_most_usd`.
        UnsettledIntentError: It cannot be decided whether a purchase exists.
        RunIdentityConflictError: The run key stands for another purchase.
    """
    plan = _plan(
        job,
        credentials,
        params,
        run_key,
        runs_url,
        on_rerun=on_rerun,
        at_most_usd=at_most_usd,
    )
    say_run(plan)
    submitted = steps.submit(plan)
    get_run_logger().info(
        "bought %s requests in %s, at most %s USD: %s",
        f"{submitted['item_count']:,}",
        "1 batch" if submitted["batch_count"] == 1 else f"{submitted['batch_count']} batches",
        submitted["committed_usd"],
        ", ".join(submitted["batch_ids"]) or "nothing was to buy",
    )
    _tell_bought(plan, submitted["batch_ids"])
    return submitted


@task(name="submit-job", **_CACHED)
async def asubmit_job(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    at_most_usd: str | None = None,
) -> Told:
    """Do what `submit_job` does, off the event loop."""
    return await asyncio.to_thread(submit_job.fn, **locals())


@task(name="wait-for-run", **_WAITING)
def wait_for_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    timeout_s: float | None = None,
) -> Told:
    """Wait until every batch that the run has bought has ended; the process stays.

    All waits of a process share one watcher, so that a hundred mapped waits ask the API no
    more often than one. `finish_run` in a flow's body suspends instead.

    Args:
        job: As `quote_job`, and so the next four.
        credentials: As `quote_job`.
        params: As `quote_job`.
        run_key: As `quote_job`.
        runs_url: As `quote_job`.
        timeout_s: Give up after so long; default: 72 hours. The batches go on.

    Returns:
        ``job, run_key, batch_ids, batch_count``.

    Raises:
        WaitTimeoutError: The time has come before the end.
    """
    plan = _plan(job, credentials, params, run_key, runs_url)
    until = _until(timeout_s)
    batch_ids = _bought_ids(plan)
    if not wait_for_batches(plan, batch_ids, until, ProgressBar(plan)):
        raise _still_waiting(plan)
    return _told_batches(plan, batch_ids)


@task(name="wait-for-run", **_WAITING)
async def await_for_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    timeout_s: float | None = None,
) -> Told:
    """Do what `wait_for_run` does, without holding a thread while it waits."""
    plan = await asyncio.to_thread(_plan, job, credentials, params, run_key, runs_url)
    until = _until(timeout_s)
    batch_ids = await asyncio.to_thread(_bought_ids, plan)
    if not await wait_for_batches_async(plan, batch_ids, until, ProgressBar(plan)):
        raise _still_waiting(plan)
    return _told_batches(plan, batch_ids)


@task(name="land-run", **_CACHED)
def land_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    again: bool = False,
) -> Told:
    """Write the table from batches that have ended; buys nothing. Materializes its asset.

    Args:
        job: As `quote_job`, and so the next four.
        credentials: As `quote_job`.
        params: As `quote_job`.
        run_key: As `quote_job`.
        runs_url: As `quote_job`.
        again: Write it anew, though it was landed.

    Returns:
        The receipt: rows by status, quoted and settled money, lanes, where the table is.

    Raises:
        WaitTimeoutError: A batch is still open; the task is tried again.
        LandingError: Something is still to buy, or rows and results do not add up.
    """
    plan = _plan(job, credentials, params, run_key, runs_url)
    receipt = steps.land(plan, again=again)
    tell_landed(plan, receipt)
    return receipt


@task(name="land-run", **_CACHED)
async def aland_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    again: bool = False,
) -> Told:
    """Do what `land_run` does, off the event loop."""
    return await asyncio.to_thread(land_run.fn, **locals())


@task(name="cancel-run", **_FRESH)
def cancel_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    reason: str = "cancelled by a task",
) -> Told:
    """Stop the run: nothing more is bought, and what is open is asked to cancel.

    What finishes all the same is billed, and landed by `land_run`.

    Returns:
        ``job, run_key, cancelled, stage``; `cancelled` is False when there was nothing to.
    """
    told = steps.cancel(_plan(job, credentials, params, run_key, runs_url), reason)
    get_run_logger().info("run %s: %s", told["run_key"], "cancelled" if told["cancelled"] else
                          f"nothing to cancel, it is {told['stage']}")  # fmt: skip
    return told


@task(name="cancel-run", **_FRESH)
async def acancel_run(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    reason: str = "cancelled by a task",
) -> Told:
    """Do what `cancel_run` does, off the event loop."""
    return await asyncio.to_thread(cancel_run.fn, **locals())


@task(name="advance-run", **_FRESH)
def advance_run(plan: Plan) -> Told:
    """Take the run as far as it goes now; one of the steps of `run_batch_job`."""
    told = steps.advance(plan)
    _tell_bought(plan, told["bought"])
    if told.get("is_new"):
        tell_landed(plan, told["receipt"])
    return told


@task(name="advance-run", **_FRESH)
async def aadvance_run(plan: Plan) -> Told:
    """Do what `advance_run` does, off the event loop."""
    return await asyncio.to_thread(advance_run.fn, plan)


@task(name="wait-for-batches", **_WAITING)
def poll_batches(plan: Plan, batch_ids: list[str], until: datetime) -> bool:
    """Hold the process until the batches have ended; one of the steps of `run_batch_job`."""
    return wait_for_batches(plan, batch_ids, until, ProgressBar(plan))


@task(name="wait-for-batches", **_WAITING)
async def apoll_batches(plan: Plan, batch_ids: list[str], until: datetime) -> bool:
    """Do what `poll_batches` does, without holding a thread."""
    return await wait_for_batches_async(plan, batch_ids, until, ProgressBar(plan))


def tell_landed(plan: Plan, receipt: Told) -> None:
    """Log, show and materialize a table that was landed just now."""
    get_run_logger().info(
        "landed %s rows (%s) for %s USD of %s quoted: %s",
        f"{receipt['row_count']:,}",
        ", ".join(f"{count:,} {status}" for status, count in receipt["rows"].items() if count)
        or "none",
        receipt["settled_usd"] or "an unknown sum",
        receipt["quoted_usd"],
        receipt["location"],
    )
    show_receipt(plan, receipt)
    for batch_id in receipt["batch_ids"]:
        emit_batch_event("landed", batch_id, payload={"run_key": receipt["run_key"]})
    # The asset is the job's table, and not one run's file in it.
    key = asset_key(plan.job.resolved_sink)
    if key is not None:
        record_table.with_options(assets=[key])(key, receipt)


@materialize("batchrouter://table", by="batchrouter", name="record-table", cache_policy=NO_CACHE)
def record_table(key: str, receipt: Told) -> None:
    """Tell Prefect that the table was materialized, with its rows and its cost."""
    add_asset_metadata(
        key,
        {
            "rows": receipt["row_count"],
            **{f"rows_{status}": count for status, count in receipt["rows"].items() if count},
            "settled_usd": receipt["settled_usd"],
            "quoted_usd": receipt["quoted_usd"],
            "run_key": receipt["run_key"],
            "outcome": receipt["outcome"],
        },
    )


def _tell_quote(quoted: Told) -> None:
    get_run_logger().info(
        "%s requests for at most %s USD (budget: %s)",
        f"{quoted['item_count']:,}",
        quoted["total_usd"],
        quoted["budget_usd"] or "none",
    )


def _tell_bought(plan: Plan, batch_ids: list[str]) -> None:
    show_batches(plan, batch_ids)
    for batch_id in batch_ids:
        emit_batch_event("submitted", batch_id, payload={"run_key": plan.run_key})


def _bought_ids(plan: Plan) -> list[str]:
    with steps.opened(plan) as run:
        return list(run.submit())


def _told_batches(plan: Plan, batch_ids: list[str]) -> Told:
    return {
        "job": plan.job.name,
        "run_key": plan.run_key,
        "batch_ids": batch_ids[: steps.SHOWN],
        "batch_count": len(batch_ids),
    }


def _still_waiting(plan: Plan) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"run {plan.run_key!r} of {plan.job.name!r} has not ended in time. It goes on at the "
        "router: run the flow again to wait further."
    )


def _until(timeout_s: float | None) -> datetime:
    return datetime.now(UTC) + (LONGEST_WAIT if timeout_s is None else timedelta(seconds=timeout_s))


def _plan(
    job: JobLike,
    credentials: Account,
    params: Mapping[str, Any] | None,
    run_key: str | None,
    runs_url: str | None,
    *,
    on_rerun: OnRerun = "resume",
    at_most_usd: str | None = None,
) -> Plan:
    return plan_of(
        job,
        credentials=credentials,
        params=params,
        run_key=run_key,
        runs_url=runs_url,
        on_rerun=on_rerun,
        at_most_usd=at_most_usd,
    )
