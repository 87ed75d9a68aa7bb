"""From the end of a batch to the end of a run: watch and land.

The API's state decides when a batch has ended. Its artifact is copied into the run folder
first, since providers and routers forget; the table is written from that copy alone.
"""

import hashlib
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from batchrouter.errors import (
    AuthError,
    BatchFailedError,
    BatchrouterError,
    BudgetExceededError,
    LandingError,
    NotFoundError,
    RunCancelledError,
)
from batchrouter.run.adoption import JUST_CREATED_FOR, LOOK_SOON
from batchrouter.run.buying import cancel_open_batches
from batchrouter.run.collecting import collect_damaged
from batchrouter.run.context import RunContext
from batchrouter.run.decide import is_winding_down
from batchrouter.run.events import Collected, Ended, Landed, LaneOutcome
from batchrouter.run.journal import LostRaceError
from batchrouter.run.progress import Progress
from batchrouter.run.state import Purchase

if TYPE_CHECKING:
    import pyarrow as pa

    from batchrouter.api.models import Batch
    from batchrouter.landing.land import LandingIdentity, LandingReport, PartToLand
    from batchrouter.landing.sinks import Sink

_log = logging.getLogger(__name__)

_LATE_LOOK = timedelta(minutes=10)
_AFTER_DEADLINE = timedelta(minutes=5)
_SHOWN_LANES = 16


def look(context: RunContext) -> datetime | None:
    """Ask the API how each open batch is, and journal those that have ended.

    Returns:
        When to look again at the latest; None when no batch is open any more.

    Raises:
        BatchFailedError: The API no longer knows a batch; nothing is bought again.
        APIError: The API refuses.
        TransportError: No reply.
    """
    if is_winding_down(context.state):
        _repeat_cancel(context)
    all_seen = note_ends(context)
    if not context.state.open_batches:
        return None
    return _look_again_at(context) if all_seen else datetime.now(UTC) + LOOK_SOON


def note_ends(context: RunContext, *, give_up_gone: bool = False) -> bool:
    """Journal the ends of open batches, as the API tells them.

    Args:
        context: The run.
        give_up_gone: Take a batch that the API no longer knows for ended, at its quoted price.

    Returns:
        False when the API does not show a young batch yet.

    Raises:
        BatchFailedError: The API no longer knows a batch, and `give_up_gone` is false.
    """
    all_seen = True
    done = total = 0
    for purchase in context.state.open_batches:
        try:
            batch = context.client.retrieve_batch(purchase.batch_id)
        except NotFoundError as error:
            if _is_young(context, purchase):
                all_seen = False
            elif give_up_gone:
                _note_end(context, _gone(purchase))
            else:
                raise _no_longer_known(purchase) from error
            continue
        if batch.counts is not None:
            done += batch.counts.completed + batch.counts.failed
            total += batch.counts.total
        if batch.is_terminal:
            _note_end(context, _ended(batch, known_as=purchase.batch_id))
    context.tell(Progress("wait", done, total or None, "items"))
    return all_seen


def _note_end(context: RunContext, end: Ended) -> None:
    context.journal.append(end, still=lambda state: state.purchases[end.batch_id].ended is None)


def _repeat_cancel(context: RunContext) -> None:
    try:
        cancel_open_batches(context)
    except AuthError as error:
        # What the key may not cancel goes on, is billed, and shall at least be landed.
        _log.warning("the open batches were not cancelled: %s", error)


def _look_again_at(context: RunContext) -> datetime:
    """When open batches must have ended, or shall be looked at again at the latest."""
    told = [
        part.bought.deadline_at
        for part in context.state.parts.values()
        if part.bought is not None and part.bought.deadline_at is not None
    ]
    # A deadline that has passed means that the router is late: look again in a while.
    soonest = datetime.now(UTC) + _LATE_LOOK
    return max(max(told, default=soonest) + _AFTER_DEADLINE, soonest)


def _is_young(context: RunContext, purchase: Purchase) -> bool:
    return context.age_of(purchase.bought_at, purchase.clock_offset_s) < JUST_CREATED_FOR


def _no_longer_known(purchase: Purchase) -> BatchFailedError:
    return BatchFailedError(
        f"the API no longer knows batch {purchase.batch_id}, which this run bought. Nothing "
        "is bought again by itself: ask the router's operator, or open the run with "
        "on_rerun='rebuy' (CLI: --rebuy)."
    )


def _gone(purchase: Purchase) -> Ended:
    return Ended(
        batch_id=purchase.batch_id,
        state="gone",
        completed=0,
        failed=0,
        settled_usd=None,
        error_code="batch_not_found",
        error_message="the API no longer knew this batch when it was bought anew",
    )


def _ended(batch: "Batch", *, known_as: str) -> Ended:
    settled, counts, error = batch.settled_total, batch.counts, batch.error
    return Ended(
        batch_id=known_as,
        state=batch.state,
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        settled_usd=settled.amount if settled is not None else None,
        lanes=tuple(
            LaneOutcome(
                provider=lane.provider,
                model=lane.model,
                items=lane.item_count,
                completed=lane.completed,
                failed=lane.failed,
                settled_usd=lane.settled_price.total if lane.settled_price else None,
            )
            for lane in batch.lanes[:_SHOWN_LANES]
        ),
        error_code=error.code or f"batch_{batch.state}" if error else None,
        error_message=error.message if error else None,
    )


def land(context: RunContext, *, again: bool = False) -> None:
    """Write the table from the run folder, and journal that it is written.

    Args:
        context: The run.
        again: Though it was landed.

    Raises:
        LandingError: Rows and results do not add up, or the table refuses; nothing was
            committed.
        ArtifactError: A copy in the run folder is damaged, and no whole one can be had.
        MissingExtraError: The tables extra is not installed.
    """
    begun = (context.state.generation, context.state.round)
    _check_rows_kept(context)
    context.folder.ensure("rejects")
    collect_damaged(context)
    parts = parts_of_round(context, 0)
    resent = [
        [part for part in parts_of_round(context, each) if part.artifact_path is not None]
        for each in range(1, context.state.round + 1)
    ]
    report = _landed(
        context,
        parts=parts,
        sink=sink_of(context),
        identity=replace(landing_identity(context), again=again),
        resent=resent,
    )
    try:
        context.journal.append(
            Landed(generation=begun[0], report=report.to_dict(), retain=_retain(context)),
            still=lambda state: (
                (state.generation, state.round) == begun and (again or state.landed is None)
            ),
        )
    except LostRaceError:
        has_moved_on = (context.state.generation, context.state.round) != begun
        if has_moved_on and context.state.landed is not None:
            # A newer one has landed meanwhile, and these rows have just replaced its own.
            land(context, again=True)
        raise
    _tidy(context)


def _landed(context: RunContext, **given: Any) -> "LandingReport":
    """Land on Spark, or here."""
    from batchrouter.landing.land import land_parts  # noqa: PLC0415 - loads pyarrow

    rows = context.manifest.row_count
    given |= {
        "fs": context.folder.fs,
        "rejects_dir": context.folder.path("rejects"),
        "token": context.folder.token,
        "on_progress": lambda done: context.tell(Progress("land", done, rows, "rows")),  # pyright: ignore[reportUnknownLambdaType]
    }
    if not context.is_on_spark:
        return land_parts(context.job, **given)
    from batchrouter.spark.landing import landed_on_spark  # noqa: PLC0415 - loads pyarrow
    from batchrouter.spark.session import session_of  # noqa: PLC0415 - as above

    landed_dir = context.folder.ensure("landed")
    spark = session_of(context.job)
    return landed_on_spark(context.job, spark=spark, landed_dir=landed_dir, **given)


def _check_rows_kept(context: RunContext) -> None:
    removed_at = context.state.removed.get("rows")
    if removed_at is not None:
        raise LandingError(
            f"the row snapshot of run {context.identity.run_key!r} was removed from its folder on "
            f"{removed_at:%Y-%m-%d}, so the table cannot be written anew: it stays as it was "
            "landed. Open the run with on_rerun='rebuy' (CLI: --rebuy) to buy it anew."
        )


def _retain(context: RunContext) -> dict[str, str] | None:
    retain = context.job.retain
    return None if retain is None else retain.model_dump(exclude_none=True)


def check_table(context: RunContext) -> "pa.Schema":
    """Find out before anything is bought whether the table will take the rows.

    Returns:
        The table's columns.

    Raises:
        SinkError: The table has other columns, or cannot be written.
        JobError: The output schema gives no columns.
    """
    from batchrouter.landing.land import check_landing  # noqa: PLC0415 - loads pyarrow

    return check_landing(
        context.job,
        fs=context.folder.fs,
        parts=parts_of_round(context, 0),
        sink=sink_of(context),
        identity=landing_identity(context),
    )


def sink_of(context: RunContext) -> "Sink":
    """Open where the rows go."""
    from batchrouter.landing.sinks import Writing, open_sink  # noqa: PLC0415 - loads pyarrow

    job = context.job
    writing = None
    if context.limit is None:
        writing = Writing(job.mode, job.key_columns, job.evolve)
    return open_sink(sink_url(context), context.settings.storage_options, writing)


def landing_identity(context: RunContext) -> "LandingIdentity":
    """Say whose rows they are."""
    from batchrouter.landing.land import LandingIdentity  # noqa: PLC0415 - loads pyarrow

    return LandingIdentity(
        job_name=context.identity.job_name,
        run_key=context.identity.run_key,
        run_slug=context.identity.run_slug,
        purchase=_purchase(context),
        models=context.job.route.workflow or ", ".join(context.job.route.models or ()),
    )


def _purchase(context: RunContext) -> str:
    """Name what was bought by its batches, whose ids no other purchase has."""
    ids = sorted(each.batch_id for each in context.state.current)
    text = "\n".join((context.identity.namespace, str(context.state.generation), *ids))
    return hashlib.sha256(text.encode()).hexdigest()


def _tidy(context: RunContext) -> None:
    built = [part for manifest in context.manifests for part in manifest.parts]
    names = (each.collected.artifact_name for each in context.state.current if each.collected)
    kept = {name for name in names if name is not None}
    context.folder.remove_strays("artifact", kept)
    context.folder.remove_strays("landed", set())
    context.folder.remove_strays("manifest", {each.manifest_path for each in built})
    context.folder.remove_strays("rows", {each.rows_path for each in built})


def sink_url(context: RunContext) -> str:
    """Where the rows go: the job's sink, or beside the journal for a trial of a few rows.

    A trial's rows in the real table would stand there twice once the whole table is bought.
    """
    if context.limit is None:
        return context.job.resolved_sink
    protocol = context.folder.fs.unstrip_protocol(context.folder.path("sample"))
    return f"parquet:{protocol}"


def parts_of_round(context: RunContext, resend_round: int) -> "list[PartToLand]":
    """Give the parts of a round, and what came back for each."""
    from batchrouter.landing.land import PartToLand  # noqa: PLC0415 - loads pyarrow

    bought = {each.part: each for each in context.state.current if each.round == resend_round}
    parts: list[PartToLand] = []
    for built in context.manifests[resend_round].parts:
        purchase = bought.get(built.index)
        ended = purchase.ended if purchase else None
        collected = purchase.collected if purchase else None
        error = None
        if ended is not None and ended.error_code is not None:
            error = (ended.error_code, ended.error_message or "")
        parts.append(
            PartToLand(
                index=built.index,
                rows_path=context.folder.path("rows", built.rows_path),
                row_count=built.row_count,
                artifact_path=_artifact_path(context, collected),
                batch_id=purchase.batch_id if purchase else None,
                batch_state=ended.state if ended else None,
                batch_error=error,
            )
        )
    return parts


def _artifact_path(context: RunContext, collected: Collected | None) -> str | None:
    if collected is None or collected.artifact_name is None:
        return None
    return context.folder.path("artifact", collected.artifact_name)


def nothing_to_land(context: RunContext) -> BatchrouterError:
    """Say why a run ends without a table; the table of an earlier run is left as it was."""
    state = context.state
    key = context.identity.run_key
    again = "Open it with on_rerun='rebuy' (CLI: --rebuy) to buy it anew."
    if state.cancel_asked is not None:
        return RunCancelledError(f"run {key!r} was cancelled and has nothing to land. {again}")
    if state.stopped is not None:
        return BudgetExceededError(f"{state.stopped.reason}. Run {key!r} has nothing to land.")
    told = [
        f"batch {each.batch_id} ended {each.ended.state}"
        + (
            f" ({each.ended.error_code}: {each.ended.error_message})"
            if each.ended.error_code
            else ""
        )
        for each in state.current
        if each.ended is not None
    ]
    return BatchFailedError(
        f"run {key!r} has no results: {'; '.join(told[:3]) or 'nothing was bought'}. The table was "
        f"left as it was. {again}"
    )
