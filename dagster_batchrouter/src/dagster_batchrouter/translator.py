"""What an asset of a job looks like in Dagster: key, group, kinds, tags, code version."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import dagster as dg

from batchrouter import Job

Role = Literal["submission", "table"]
Mode = Literal["deferred", "blocking"]

ROLE_TAG = "batchrouter/role"
"""By this tag the sensors find the assets of a code location."""

_SINK_KINDS = {
    "delta": "delta",
    "iceberg": "iceberg",
    "duckdb": "duckdb",
    "postgresql": "postgres",
    "postgres": "postgres",
    "sqlite": "sqlite",
}


@dataclass(frozen=True, slots=True)
class BatchrouterAssetProps:
    """One asset of a job.

    Attributes:
        job: The job, its parameters not yet filled by a partition.
        key: The key that `batchrouter_assets` was given; the table's.
        role: ``table``, or ``submission`` of a deferred job.
        mode: Who waits for the batch: the sensor, or the step.
    """

    job: Job
    key: dg.AssetKey
    role: Role
    mode: Mode = "deferred"


class DagsterBatchrouterTranslator:
    """Turns a job's assets into `dg.AssetSpec`. Subclass it to give other keys, groups or owners.

    Example:
        >>> class InLake(DagsterBatchrouterTranslator):
        ...     def get_asset_spec(self, props):
        ...         spec = super().get_asset_spec(props)
        ...         return spec.replace_attributes(group_name="lake", owners=["team:data"])
    """

    def get_asset_spec(self, props: BatchrouterAssetProps) -> dg.AssetSpec:
        """Return the spec of one asset; dependencies and partitions are added by the factory."""
        is_table = props.role == "table"
        kind = _SINK_KINDS.get(props.job.sink.partition(":")[0], "parquet")
        return dg.AssetSpec(
            key=props.key if is_table else submission_key(props.key),
            description=_description(props),
            group_name=None,
            code_version=code_version(props.job),
            kinds={"batchrouter", kind} if is_table else {"batchrouter"},
            tags={ROLE_TAG: props.role},
            metadata={"batchrouter/job": props.job.name},
        )


def submission_key(key: dg.AssetKey) -> dg.AssetKey:
    """The key of the submission that belongs to a table.

    Example:
        >>> submission_key(dg.AssetKey(["lake", "labelled"])).to_user_string()
        'lake/labelled_submission'
    """
    return dg.AssetKey([*key.path[:-1], f"{key.path[-1]}_submission"])


def code_version(job: Job) -> str:
    """Hash what decides what the job asks for, so that a changed prompt shows as stale.

    Parameters without a value are filled with their own names: the code is the same for all
    partitions.
    """
    unfilled = {name: name for name, value in job.params.items() if value is None}
    fingerprint = job.with_params(unfilled).fingerprint()
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _description(props: BatchrouterAssetProps) -> str:
    job = props.job
    route = job.route.workflow or ", ".join(job.route.models or ())
    budget = "no budget" if job.budget is None else f"at most ${job.budget} a run"
    if props.role == "submission":
        return f"The batch of job `{job.name}`: quoted, held against its budget, and bought once."
    return (
        f"The table of job `{job.name}`: one row for each row of its source, by {route}; {budget}."
    )
