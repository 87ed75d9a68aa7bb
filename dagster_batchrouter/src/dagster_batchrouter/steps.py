"""What the steps do: submit a partition's batch, land its table, or both with a wait between.

Each partition is a run of batchrouter, opened by its key, so that a step that is repeated after
any death goes on where the last one stopped.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from batchrouter.errors import BatchrouterError, WaitTimeoutError
from dagster_batchrouter import metadata as told
from dagster_batchrouter.checks import Landed, check_results
from dagster_batchrouter.failures import FINAL_TAG, as_failures
from dagster_batchrouter.history import last_columns, run_key_to_land
from dagster_batchrouter.plan import REBUY_TAG, RUN_KEY_TAG, JobPlan, launch_id

if TYPE_CHECKING:
    from batchrouter import Client, Receipt, Run
    from batchrouter.run import Progress, QuoteSummary, RunStatus

_SETTLE_S = 150.0
"""A purchase whose reply was lost is decided within a minute; then someone must look."""

_LOOK_S = 2.0
_LOG_EVERY_S = 30.0
_UNBOUGHT = frozenset({"opened", "built"})
_WITHOUT_TABLE = frozenset({"cancelled", "failed"})
_REBUY = f"To buy it anew in Dagster, launch it with the tag {REBUY_TAG}: true."


@dataclass(frozen=True)
class Step:
    """One step: its plan, its context, and the client that it opened."""

    plan: JobPlan
    context: dg.AssetExecutionContext
    client: "Client"

    @property
    def partitions(self) -> Sequence[str | None]:
        """The partitions to do; one None without partitions."""
        return self.context.partition_keys if self.plan.partitions_def is not None else [None]

    def rebuy(self, run_key: str, partition: str | None) -> None:
        """Begin anew what has ended, if the launch asks for it; a retry of it does not again."""
        run = self.context.run
        if self.plan.on_rerun == "rebuy" or run.tags.get(REBUY_TAG) == "true":
            token = f"rebuy {launch_id(run)}"
            options: dict[str, Any] = {"on_rerun": "rebuy", "attempt": token}
            self.plan.open_run(self.client, run_key, partition, **options).close()

    def open_run(self, run_key: str, partition: str | None) -> "Run":
        """Open a partition's run, claimed for this Dagster run."""
        return self.plan.open_run(
            self.client,
            run_key,
            partition,
            attempt=self.context.run.run_id,
            on_progress=_logged(self.context, partition),
        )


def submit(plan: JobPlan, context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """Buy the batch of each partition, and do not wait for it."""
    statuses: list[RunStatus] = []
    with as_failures(context, _REBUY), plan.client(context.resources) as client:
        step = Step(plan, context, client)
        base_url = client.settings.base_url
        for partition in step.partitions:
            run_key = plan.run_key(partition, launch_id(context.run))
            step.rebuy(run_key, partition)
            with step.open_run(run_key, partition) as run:
                status, quote = _bought(run)
            statuses.append(status)
            metadata = told.submission_metadata(status, quote, base_url)
            context.add_asset_metadata(metadata, plan.submission_key, partition)
            context.log.info(
                "%s: %s, $%s committed",
                run_key,
                ", ".join(status.batch_ids[-3:]) or "nothing to buy",
                status.committed_usd,
            )
    return dg.MaterializeResult(
        asset_key=plan.submission_key, data_version=told.submission_version(statuses)
    )


def land(plan: JobPlan, context: dg.AssetExecutionContext) -> Iterator[Any]:
    """Land the table of each partition, if its run is done.

    A run that a sensor launched never waits: with another round out, it ends without a
    materialization, and the sensor comes again. Any other run waits.
    """
    by_sensor = RUN_KEY_TAG in context.run.tags
    landed: dict[str | None, Landed] = {}
    with as_failures(context, _REBUY), plan.client(context.resources) as client:
        step = Step(plan, context, client)
        base_url = client.settings.base_url
        for partition in step.partitions:
            run_key = run_key_to_land(plan, context, partition)
            if run_key is None:
                raise _not_submitted(plan, context, partition)
            with step.open_run(run_key, partition) as run:
                if run.status().stage in _UNBOUGHT:
                    raise _not_submitted(plan, context, partition)
                receipt = _advance(step, run) if by_sensor else _wait(step, run)
                if receipt is not None:
                    landed[partition] = _landed(run, receipt)
    if landed:
        yield from _tell(plan, context, landed, base_url)


def run_whole(plan: JobPlan, context: dg.AssetExecutionContext) -> Iterator[Any]:
    """Buy the batches of all partitions, then wait for each and land it."""
    landed: dict[str | None, Landed] = {}
    with as_failures(context, _REBUY), plan.client(context.resources) as client:
        step = Step(plan, context, client)
        base_url = client.settings.base_url
        keys = {each: plan.run_key(each, launch_id(context.run)) for each in step.partitions}
        for partition, run_key in keys.items():
            step.rebuy(run_key, partition)
            with step.open_run(run_key, partition) as run:
                _bought(run)
        for partition, run_key in keys.items():
            with step.open_run(run_key, partition) as run:
                landed[partition] = _landed(run, _wait(step, run))
    yield from _tell(plan, context, landed, base_url)


def _bought(run: "Run") -> "tuple[RunStatus, QuoteSummary | None]":
    """Buy what is not bought, and know that it is.

    Raises:
        WaitTimeoutError: A purchase whose reply was lost could not be decided in time.
        BatchrouterError: As `Run.submit`, or why the run has ended without a table.
    """
    quote = run.quote() if run.status().stage in _UNBOUGHT else None
    end_s = time.monotonic() + _SETTLE_S
    while True:
        run.submit()
        status = run.status()
        if status.stage != "buying":
            break
        if time.monotonic() > end_s:
            raise WaitTimeoutError(
                f"{status.run_key}: the router has not shown yet whether a purchase exists. "
                "Nothing is bought twice: materialize it again to go on."
            )
        time.sleep(_LOOK_S)
    if status.stage in _WITHOUT_TABLE:
        run.advance()  # says why
    return status, quote


def _advance(step: Step, run: "Run") -> "Receipt | None":
    """Go on without waiting; None when a batch is still open."""
    from batchrouter.run import Done  # noqa: PLC0415 - costs a code location its load time

    end_s = time.monotonic() + _SETTLE_S
    while True:
        answer = run.advance()
        if isinstance(answer, Done):
            return answer.receipt
        if answer.batch_ids:
            step.context.log.info(
                "waiting for %s: the sensor launches this again when it has ended",
                ", ".join(answer.batch_ids[:3]),
            )
            return None
        if time.monotonic() > end_s:
            raise WaitTimeoutError("the router has not shown yet whether a purchase exists")
        left_s = (answer.deadline_at - datetime.now(UTC)).total_seconds()
        time.sleep(min(max(left_s, 0.1), _LOOK_S))


def _wait(step: Step, run: "Run") -> "Receipt":
    """Hold the step until the table is landed; a terminated run may take its batch with it."""
    plan, context = step.plan, step.context
    if run.status().stage == "waiting":
        context.log.info(
            "This step waits for the batch, and holds its worker meanwhile. Materialize "
            f"{(plan.submission_key or plan.key).to_user_string()} alone to leave the waiting to "
            "the sensor."
            if plan.submission_key
            else "This step waits for the batch, and holds its worker meanwhile (mode: blocking)."
        )
    try:
        return run.execute(wait=plan.wait, timeout_s=plan.timeout_s)
    except dg.DagsterExecutionInterruptedError:
        if plan.cancel_on_termination and _is_terminated(context):
            _cancel(run, context)
        raise


def _is_terminated(context: dg.AssetExecutionContext) -> bool:
    """True when a person ended the run; a worker that is only moved away keeps its batch."""
    run = context.instance.get_run_by_id(context.run.run_id)
    ended = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return run is not None and run.status in ended


def _cancel(run: "Run", context: dg.AssetExecutionContext) -> None:
    try:
        run.cancel("the Dagster run was terminated", attempt=context.run.run_id, grace_s=0)
    except BatchrouterError as error:
        # The cancel sensor tries again; the termination itself must not be held up.
        context.log.warning("the batch could not be cancelled: %s", error)


def _landed(run: "Run", receipt: "Receipt") -> Landed:
    try:
        columns = tuple((each.name, str(each.type)) for each in run.columns())
    except BatchrouterError:
        columns = None  # its row snapshot was removed: the table is as it was landed
    return Landed(receipt, run.status().row_count or 0, columns)


def _tell(
    plan: JobPlan,
    context: dg.AssetExecutionContext,
    landed: dict[str | None, Landed],
    base_url: str,
) -> Iterator[Any]:
    """Yield the materialization and its checks, or the checks alone when they alone were asked."""
    all_landed = list(landed.values())
    wanted = context.selected_asset_check_keys
    results = [
        each
        for each in check_results(plan.checks, plan.key, all_landed, last_columns(plan, context))
        if dg.AssetCheckKey(plan.key, str(each.check_name)) in wanted
    ]
    if plan.key not in context.selected_asset_keys:
        yield from results
        return
    partitioned = plan.partitions_def is not None
    for partition, each in landed.items():
        metadata = told.table_metadata(each, base_url, partitioned=partitioned)
        context.add_asset_metadata(metadata, plan.key, partition)
    yield dg.MaterializeResult(
        asset_key=plan.key, check_results=results, data_version=told.data_version(all_landed)
    )


def _not_submitted(
    plan: JobPlan, context: dg.AssetExecutionContext, partition: str | None
) -> dg.Failure:
    submission = (plan.submission_key or plan.key).to_user_string()
    of = f" for partition {partition!r}" if partition is not None else ""
    context.instance.add_run_tags(context.run.run_id, {FINAL_TAG: "not_submitted"})
    return dg.Failure(
        description=(
            f"No batch was submitted{of}. Materialize {submission}{of}: the sensor then lands "
            f"{plan.key.to_user_string()} by itself. (Or materialize both in one run, which waits; "
            'or build the assets with mode="blocking".)'
        ),
        metadata={"batchrouter/error_code": "not_submitted"},
        allow_retries=False,
    )


def _logged(
    context: dg.AssetExecutionContext, partition: str | None
) -> "Callable[[Progress], None]":
    """Write progress into the run's log: at each new stage, then every half minute."""
    last: dict[str, Any] = {"stage": "", "at": 0.0}
    of = f"{partition}: " if partition is not None else ""

    def tell(progress: "Progress") -> None:
        now = time.monotonic()
        if progress.stage == last["stage"] and now - last["at"] < _LOG_EVERY_S:
            return
        last.update(stage=progress.stage, at=now)
        total = "" if progress.total is None else f" of {progress.total:,}"
        said = f"{of}{progress.stage}: {progress.done:,}{total} {progress.unit}"
        context.log.info("%s", said)

    return tell
