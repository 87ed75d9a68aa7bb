"""What a task or a flow was asked to do, made whole: job, account, run key.

People pass a job as a file, a mapping, a `Job` or a block, and an account as a block, its name
or not at all. Every step turns that into one `Plan`, the same one at every resume and retry.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run as runtime

from batchrouter import Settings
from batchrouter.errors import ConfigError
from prefect_batchrouter.blocking import load_block
from prefect_batchrouter.credentials import BatchrouterCredentials

if TYPE_CHECKING:
    from batchrouter import Job, Run
    from batchrouter.run import Progress
    from prefect_batchrouter.jobs import BatchrouterJob

OnRerun = Literal["resume", "rebuy"]
JobLike = Any
"""A path, a mapping, a `Job` or a `BatchrouterJob` block."""
Account = BatchrouterCredentials | str | None
"""A credentials block, the name of a saved one, or None for the environment's variables."""

_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, named as precisely as the core needs it.

    Attributes:
        attempt: The flow run that carries it: the core grants a rebuy once for each, and
            cancelling it leaves alone what another flow run has taken over.
        block_name: The saved block that the account comes from, if there is one.
        job_block_name: The same for a job's block that holds its own account.
    """

    job: "Job"
    settings: Settings
    run_key: str
    attempt: str | None = None
    on_rerun: OnRerun = "resume"
    block_name: str | None = None
    job_block_name: str | None = None

    def open(self, on_progress: "Callable[[Progress], None] | None" = None) -> "Run":
        """Create the run or go on with it.

        Raises:
            RunIdentityConflictError: The key stands for another purchase.
            JournalError: The run folder is damaged.
        """
        from batchrouter import Run  # noqa: PLC0415 - loads the tables' libraries

        return Run.open(
            self.job,
            run_key=self.run_key,
            settings=self.settings,
            attempt=self.attempt,
            on_rerun=self.on_rerun,
            on_progress=on_progress,
        )

    def hashed(self, *more: str) -> str:
        """Hash what decides the outcome of a step: account, run, purchase; no secret comes out."""
        key = self.settings.api_key.get_secret_value() if self.settings.api_key else ""
        whole = (
            _VERSION,
            self.settings.base_url,
            hashlib.sha256(f"prefect\0{key}".encode()).hexdigest(),
            self.settings.identity_namespace,
            self.job.name,
            self.run_key,
            self.job.fingerprint(),
            self.job.resolved_sink,
            str(self.job.budget),
            str(self.settings.max_run_usd),
            self.on_rerun,
            self.attempt if self.on_rerun == "rebuy" else None,
            *more,
        )
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def plan_of(
    job: JobLike,
    *,
    credentials: Account = None,
    params: Mapping[str, Any] | None = None,
    run_key: str | None = None,
    runs_url: str | None = None,
    on_rerun: OnRerun = "resume",
    at_most_usd: Any = None,
) -> Plan:
    """Make the plan.

    Args:
        job: A path to a `.yaml`, `.toml` or `.json` file, a mapping, a `Job`, or a
            `BatchrouterJob` block.
        credentials: Default: the job's block, else `BATCHROUTER_…` variables.
        params: Values for the job's parameters.
        run_key: Default: the outermost flow run, and the parameters if there are any.
        runs_url: Instead of the account's.
        on_rerun: ``rebuy`` buys anew what has ended, once for each flow run.
        at_most_usd: The run may cost no more than this, such as a price that was approved.

    Raises:
        JobError: The job is wrong, with each problem's place.
        ConfigError: A setting is wrong, or there is no run key outside a flow.
        ValueError: No block of this name is saved.
    """
    job_block = _as_block(job)
    if job_block is not None:
        credentials = credentials if credentials is not None else job_block.credentials
        params = {**job_block.params, **(params or {})}
        job = job_block.job
    filled = _load(job, params)
    if isinstance(credentials, str):
        credentials = load_block(BatchrouterCredentials, credentials)
    if credentials is None:
        settings = Settings.from_env(runs_url=runs_url, max_run_usd=at_most_usd)
    else:
        settings = credentials.settings(runs_url=runs_url, max_run_usd=at_most_usd)
    return Plan(
        job=filled,
        settings=settings,
        run_key=run_key or default_run_key(params),
        attempt=outermost_flow_run_id(),
        on_rerun=on_rerun,
        block_name=block_name(credentials),
        job_block_name=block_name(job_block),
    )


def _as_block(job: JobLike) -> "BatchrouterJob | None":
    from prefect_batchrouter.jobs import BatchrouterJob  # noqa: PLC0415 - it imports this module

    return job if isinstance(job, BatchrouterJob) else None


def block_name(block: Any) -> str | None:
    """The name under which a block was saved, None for one that only lives in this process."""
    return getattr(block, "_block_document_name", None)


def _load(job: JobLike, params: Mapping[str, Any] | None) -> "Job":
    from batchrouter import Job  # noqa: PLC0415 - a flow's file is imported more often than run

    if isinstance(job, str | Path):
        return Job.from_file(job, params)
    if not isinstance(job, Job | Mapping):
        raise ConfigError(
            f"job: {type(job).__name__} is no job; pass the path of a job file, a mapping, a Job, "
            "or a BatchrouterJob block"
        )
    loaded = Job.model_validate(job)
    return loaded.with_params(params) if params else loaded


def default_run_key(params: Mapping[str, Any] | None) -> str:
    """Name a run after the outermost flow run: resume, retry and re-run of it keep the name.

    Mapped steps share a flow run and differ in their parameters, so those are part of it.

    Raises:
        ConfigError: There is no flow run.
    """
    flow_run_id = outermost_flow_run_id()
    if flow_run_id is None:
        raise ConfigError("run_key: give one outside a flow; a flow run names its runs by itself")
    told = ",".join(f"{name}={value}" for name, value in sorted((params or {}).items()))
    return f"{flow_run_id}/{told}" if told else flow_run_id


def outermost_flow_run_id() -> str | None:
    """The id of the flow run that a person or a schedule started, None outside a flow."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return None
    return _outermost(runtime.id)


@lru_cache(maxsize=128)
def _outermost(flow_run_id: str | None) -> str | None:
    # Asks the server for the parents of a subflow, so each flow run is looked up once.
    return str(runtime.root_flow_run_id) if flow_run_id else None
