"""What the assets of one job share, and the names under which their runs buy once.

A run key is the table's asset key and the partition, or without partitions the Dagster run that
began it. It holds no try number: `RetryPolicy`, run retries and backfills come back to the same.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from batchrouter import Job
from batchrouter.errors import ConfigError
from dagster_batchrouter.checks import BatchrouterChecks
from dagster_batchrouter.partitions import params_of
from dagster_batchrouter.resources import BatchrouterResource

if TYPE_CHECKING:
    from batchrouter import Client, Run

PLAN = "batchrouter/plan"
"""The metadata entry of an asset that holds its `JobPlan`, for the sensors of its location."""

RUN_KEY_TAG = "batchrouter/run_key"
"""On runs that a sensor launched: which batchrouter run they carry on."""

REBUY_TAG = "batchrouter/rebuy"
"""On a run that a person launches: ``true`` buys anew what has ended."""

_MOST_RUN_KEY_CHARS = 480

WaitMode = Literal["both", "webhook", "poll"]


@dataclass(frozen=True)
class JobPlan:
    """A job and how Dagster runs it.

    Attributes:
        key: The table's asset key.
        submission_key: The submission's; None in blocking mode.
        partition_params: Templates of the job's parameters, by name.
        resource: The account, if not a resource of the code location.
        on_rerun: What a new launch does with a partition that has ended.
        timeout_s: The longest that a step waits for a batch.
        cancel_on_termination: A terminated run takes its batch with it.
    """

    job: Job
    key: dg.AssetKey
    submission_key: dg.AssetKey | None
    partitions_def: dg.PartitionsDefinition[Any] | None = None
    partition_params: Mapping[str, str] = field(default_factory=dict[str, str])
    resource_key: str = "batchrouter"
    resource: BatchrouterResource | None = None
    checks: BatchrouterChecks = field(default_factory=BatchrouterChecks)
    on_rerun: Literal["resume", "rebuy"] = "resume"
    wait: WaitMode = "both"
    timeout_s: float | None = None
    cancel_on_termination: bool = True

    @property
    def required_resource_keys(self) -> set[str]:
        """What Dagster must bring for a step or a sensor."""
        return set() if self.resource is not None else {self.resource_key}

    @contextmanager
    def client(self, resources: Any) -> Generator["Client"]:
        """Open the API's client, from the resources of a step or a sensor."""
        if self.resource is None:
            with getattr(resources, self.resource_key).get_client() as client:
                yield client
            return
        # Outside Dagster's own resources nobody else reads its environment variables.
        with (
            self.resource.process_config_and_initialize_cm() as resource,
            resource.get_client() as client,
        ):
            yield client

    def job_of(self, partition_key: str | None) -> Job:
        """The job with the parameters of a partition.

        Raises:
            JobError: A value does not fit its parameter.
        """
        params = params_of(self.partitions_def, self.partition_params, partition_key)
        return self.job.with_params(params) if params else self.job

    def run_key(self, partition_key: str | None, launch_id: str) -> str:
        """The name of an execution.

        Args:
            partition_key: None without partitions.
            launch_id: The Dagster run that began it: the root of its retries.

        Raises:
            ConfigError: The partition's key is too long to be found again.
        """
        run_key = f"{self.key.to_user_string()}:{partition_key or launch_id}"
        if len(run_key) > _MOST_RUN_KEY_CHARS:
            raise ConfigError(
                f"the partition key {run_key[:80]!r}… is too long: asset key and partition key "
                f"may have {_MOST_RUN_KEY_CHARS} characters together"
            )
        return run_key

    def partition_in(self, run_key: str) -> str | None:
        """The partition that a run key names, or the run that began it; None for another's."""
        prefix = f"{self.key.to_user_string()}:"
        return run_key.removeprefix(prefix) if run_key.startswith(prefix) else None

    def open_run(
        self,
        client: "Client",
        run_key: str,
        partition_key: str | None,
        **options: Any,
    ) -> "Run":
        """Create the run or go on with it, as `batchrouter.Run.open`."""
        from batchrouter import Run  # noqa: PLC0415 - costs a code location its load time

        return Run.open(self.job_of(partition_key), run_key=run_key, client=client, **options)


def launch_id(run: dg.DagsterRun) -> str:
    """The run that a person or a schedule launched, of whatever is a retry of it."""
    return run.root_run_id or run.run_id


def plans_in(repository_def: dg.RepositoryDefinition) -> dict[dg.AssetKey, JobPlan]:
    """The plans of all tables of a code location, by the table's key."""
    plans: dict[dg.AssetKey, JobPlan] = {}
    for assets_def in set(repository_def.assets_defs_by_key.values()):
        for metadata in assets_def.metadata_by_key.values():
            plan = metadata.get(PLAN)
            if isinstance(plan, JobPlan):
                plans[plan.key] = plan
    return plans
