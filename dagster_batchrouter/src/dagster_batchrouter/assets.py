"""A job as Dagster assets: its submission, and its table."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from batchrouter import Job
from batchrouter.errors import ConfigError
from dagster_batchrouter import steps
from dagster_batchrouter.checks import BatchrouterChecks
from dagster_batchrouter.partitions import checked_params
from dagster_batchrouter.plan import PLAN, JobPlan, WaitMode
from dagster_batchrouter.resources import BatchrouterResource
from dagster_batchrouter.translator import (
    BatchrouterAssetProps,
    DagsterBatchrouterTranslator,
    Mode,
    Role,
)

if TYPE_CHECKING:
    from dagster import AssetsDefinition

_PATIENT = dg.RetryPolicy(max_retries=3, delay=15, backoff=dg.Backoff.EXPONENTIAL)
"""A retry goes on with what was bought, so it costs nothing to have some."""


def batchrouter_assets(
    *,
    job: Job | Mapping[str, Any] | str | os.PathLike[str],
    key: dg.AssetKey | str | Iterable[str] | None = None,
    mode: Mode = "deferred",
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    partition_params: Mapping[str, str] | None = None,
    deps: Iterable[Any] = (),
    group_name: str | None = None,
    translator: DagsterBatchrouterTranslator | None = None,
    checks: BatchrouterChecks | None = None,
    resource_key: str = "batchrouter",
    resource: BatchrouterResource | None = None,
    retry_policy: dg.RetryPolicy | None = _PATIENT,
    backfill_policy: dg.BackfillPolicy | None = None,
    pool: str | None = None,
    op_tags: Mapping[str, Any] | None = None,
    io_manager_key: str | None = None,
    on_rerun: Literal["resume", "rebuy"] = "resume",
    wait: WaitMode = "both",
    timeout_s: float | None = None,
    cancel_on_termination: bool = True,
) -> "list[AssetsDefinition]":
    """Make the assets of a job.

    ``deferred`` gives two: ``<key>_submission`` buys the batch and is materialized in seconds;
    ``<key>`` is the landed table, materialized by a run that `build_batchrouter_sensor` launches
    when the batch has ended. ``blocking`` gives ``<key>`` alone, whose step waits.

    Args:
        job: The job, or its file, or its fields.
        key: The table's asset key; default: the job's name.
        mode: Who waits for the batch: the sensor, or the step.
        partitions_def: Each partition is a run of its own, bought once.
        partition_params: Which of the job's parameters a partition fills, such as
            ``{"day": "{start:%Y-%m-%d}"}``; see `partitions.checked_params`. Default: the
            parameter without a value takes the key.
        deps: Upstream assets: what makes the source.
        group_name: Of the assets.
        translator: Gives other keys, groups, tags, owners.
        checks: Limits of the table's checks; default: 1 % of failed rows, not blocking.
        resource_key: Of the `BatchrouterResource` in the definitions.
        resource: The account itself, kept out of the definitions' resources.
        retry_policy: Of each step. Retries buy nothing twice.
        backfill_policy: Default: one run a partition.
        pool: Bounds how many steps run at once. A deferred job's steps take seconds; the
            batches in flight are not counted.
        op_tags: Of each step.
        io_manager_key: Loads the table for downstream inputs.
        on_rerun: What launching a partition again does once it has ended: ``resume`` nothing,
            ``rebuy`` buys it anew, once a launch. The run tag ``batchrouter/rebuy: true`` does
            that for one launch.
        wait: How a waiting step watches: ``poll``, ``webhook``, or ``both``.
        timeout_s: How long a step waits at most; the batch goes on. Default: 72 hours.
        cancel_on_termination: Terminating a run in Dagster cancels its batch.

    Returns:
        The submission and the table, or the table alone.

    Raises:
        JobError: The job is wrong, or its parameters do not fit the partitions.
        ConfigError: An argument is wrong.

    Example:
        >>> job = Job(name="tickets", params={"day": None}, source="t/${params.day}.csv",
        ...           key="id", request={"kind": "chat", "user": "{body}"},
        ...           route={"models": ["gpt-4o-mini"]}, budget="5.00", sink="labelled")
        >>> days = dg.DailyPartitionsDefinition(start_date="2026-11-01")
        >>> [each.key.to_user_string() for each in batchrouter_assets(job=job, partitions_def=days)]
        ['tickets_submission', 'tickets']
    """
    if mode not in {"deferred", "blocking"}:
        raise ConfigError(f"mode: {mode!r} is unknown; use 'deferred' or 'blocking'")
    job = _read_job(job)
    translator = translator or DagsterBatchrouterTranslator()
    asked = _asset_key(key, job)
    table = _spec(translator, job, asked, "table", mode)
    submission = _spec(translator, job, asked, "submission", mode) if mode == "deferred" else None
    plan = JobPlan(
        job=job,
        key=table.key,
        submission_key=submission.key if submission else None,
        partitions_def=partitions_def,
        partition_params=checked_params(job, partitions_def, partition_params),
        resource_key=resource_key,
        resource=resource,
        checks=checks or BatchrouterChecks(),
        on_rerun=on_rerun,
        wait=wait,
        timeout_s=timeout_s,
        cancel_on_termination=cancel_on_termination,
    )
    options: dict[str, Any] = {
        "partitions_def": partitions_def,
        "group_name": group_name,
        "retry_policy": retry_policy,
        "backfill_policy": backfill_policy,
        "pool": pool,
        "op_tags": op_tags,
        "required_resource_keys": plan.required_resource_keys,
    }
    if io_manager_key is not None:
        table = table.with_io_manager_key(io_manager_key)
    if submission is None:
        return [_table_asset(plan, _with_deps(table, deps), options)]
    return [
        _submission_asset(plan, _with_deps(submission, deps), options),
        _table_asset(plan, _with_deps(table, [submission.key]), options),
    ]


def _submission_asset(
    plan: JobPlan, spec: dg.AssetSpec, options: dict[str, Any]
) -> "AssetsDefinition":
    @dg.multi_asset(name=_op_name(spec.key), specs=[spec], **options)
    def submission(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        return steps.submit(plan, context)

    return submission


def _table_asset(plan: JobPlan, spec: dg.AssetSpec, options: dict[str, Any]) -> "AssetsDefinition":
    # Without can_subset its checks would be required outputs of a run that lands nothing yet.
    @dg.multi_asset(
        name=_op_name(spec.key),
        specs=[spec.replace_attributes(skippable=True).merge_attributes(metadata={PLAN: plan})],
        check_specs=plan.checks.specs(plan.key),
        can_subset=True,
        **options,
    )
    def table(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if plan.submission_key is None:
            yield from steps.run_whole(plan, context)
        else:
            yield from steps.land(plan, context)

    return table


def _read_job(job: Job | Mapping[str, Any] | str | os.PathLike[str]) -> Job:
    if isinstance(job, Job):
        return job
    return Job.model_validate(job) if isinstance(job, Mapping) else Job.from_file(Path(job))


def _asset_key(key: dg.AssetKey | str | Iterable[str] | None, job: Job) -> dg.AssetKey:
    if key is None:
        return dg.AssetKey(job.name.replace("-", "_").replace(".", "_"))
    if isinstance(key, dg.AssetKey):
        return key
    return dg.AssetKey(key.split("/") if isinstance(key, str) else list(key))


def _spec(
    translator: DagsterBatchrouterTranslator, job: Job, key: dg.AssetKey, role: Role, mode: Mode
) -> dg.AssetSpec:
    return translator.get_asset_spec(BatchrouterAssetProps(job, key, role, mode))


def _with_deps(spec: dg.AssetSpec, deps: Iterable[Any]) -> dg.AssetSpec:
    return spec.merge_attributes(deps=list(deps))


def _op_name(key: dg.AssetKey) -> str:
    return "__".join(key.path).replace("-", "_").replace(".", "_")
