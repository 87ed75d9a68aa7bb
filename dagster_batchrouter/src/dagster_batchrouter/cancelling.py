"""The sensor that cancels: a Dagster run that a person terminated takes its batch with it.

The step itself cancels when it can. This does so for a step that was killed, for a run that was
ended between two steps, and for a submission that had just been sent.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from batchrouter.errors import BatchrouterError
from dagster_batchrouter.plan import RUN_KEY_TAG, JobPlan, launch_id, plans_in
from dagster_batchrouter.resources import BatchrouterResource
from dagster_batchrouter.sensors import account

if TYPE_CHECKING:
    from batchrouter import Client

_PARTITION_TAG = "dagster/partition"
_RANGE_START_TAG = "dagster/asset_partition_range_start"
_RANGE_END_TAG = "dagster/asset_partition_range_end"


def build_batchrouter_cancel_sensor(
    *,
    name: str = "batchrouter_cancel_sensor",
    resource_key: str = "batchrouter",
    resource: BatchrouterResource | None = None,
    tables: Sequence[dg.AssetKey] | None = None,
    minimum_interval_seconds: int | None = None,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Make the sensor that cancels the batches of terminated runs; leave it out to keep them.

    A batch is cancelled only if the terminated run is the last that worked on it: a run that
    took over keeps it. Assets with ``cancel_on_termination=False`` are passed over. Items that
    a provider already has may still complete and be billed; launching the table again lands them.

    Args:
        name: Of the sensor.
        resource_key: Of the account in the definitions.
        resource: The account itself, as for `batchrouter_assets`.
        tables: The tables whose runs it looks at; default: all of the code location.
        minimum_interval_seconds: Between two ticks.
        default_status: ``STOPPED`` to have it started by hand.

    Example:
        >>> build_batchrouter_cancel_sensor().name
        'batchrouter_cancel_sensor'
    """

    def cancel(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        repository = context.repository_def
        runs = [
            (plan, run_key)
            for plan, run_key in (_runs_of(context.dagster_run, repository) if repository else ())
            if tables is None or plan.key in tables
        ]
        cancelled: list[str] = []
        if runs:
            with (
                account(resource, context.resources, resource_key) as opened,
                opened.get_client() as client,
            ):
                for plan, run_key in runs:
                    if _cancel(context, client, plan, run_key):
                        cancelled.append(run_key)
        told = ", ".join(cancelled) or "nothing"
        return dg.SkipReason(f"Run {context.dagster_run.run_id} was terminated: cancelled {told}.")

    return dg.RunStatusSensorDefinition(
        name=name,
        run_status=dg.DagsterRunStatus.CANCELED,
        run_status_sensor_fn=cancel,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys=set() if resource is not None else {resource_key},
        description="Cancels the batches of runs that were terminated.",
    )


def _cancel(
    context: dg.RunStatusSensorContext,
    client: "Client",
    plan: JobPlan,
    run_key: str,
) -> bool:
    """Cancel one run, if the terminated Dagster run is the last that claimed it."""
    from batchrouter.run import cancel_run  # noqa: PLC0415 - costs a code location its load time

    try:
        return cancel_run(
            plan.job.name,
            run_key,
            client=client,
            reason="the Dagster run was terminated",
            attempt=context.dagster_run.run_id,
            grace_s=0,
        )
    except BatchrouterError as error:
        if error.retryable:
            raise
        context.log.warning("%s: its batch could not be cancelled: %s", run_key, error)
        return False


def _runs_of(
    run: dg.DagsterRun, repository: dg.RepositoryDefinition
) -> Iterator[tuple[JobPlan, str]]:
    """The batchrouter runs that a Dagster run may have worked on."""
    of_job = repository.get_job(run.job_name).asset_layer.executable_asset_keys
    selected = set(of_job if run.asset_selection is None else run.asset_selection)
    for plan in plans_in(repository).values():
        if not plan.cancel_on_termination or not selected & {plan.key, plan.submission_key}:
            continue
        if plan.partitions_def is None:
            yield plan, run.tags.get(RUN_KEY_TAG) or plan.run_key(None, launch_id(run))
            continue
        for partition in _partitions_of(run, plan):
            yield plan, plan.run_key(partition, "")


def _partitions_of(run: dg.DagsterRun, plan: JobPlan) -> list[str]:
    if _PARTITION_TAG in run.tags:
        return [run.tags[_PARTITION_TAG]]
    start, end = run.tags.get(_RANGE_START_TAG), run.tags.get(_RANGE_END_TAG)
    if start is None or end is None or plan.partitions_def is None:
        return []
    return list(plan.partitions_def.get_partition_keys_in_range(dg.PartitionKeyRange(start, end)))
