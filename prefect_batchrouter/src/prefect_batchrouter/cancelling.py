"""A cancelled flow run takes its batches with it, whether it runs or sleeps.

A running one: Prefect's runner ends the process and calls the flow's hook. A sleeping one has
no process and no runner, so no hook; an automation starts the janitor for it.
"""

from collections.abc import Mapping
from logging import LoggerAdapter
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger

from batchrouter import Settings
from batchrouter.errors import BatchrouterError
from prefect_batchrouter.blocking import load_block
from prefect_batchrouter.credentials import BatchrouterCredentials
from prefect_batchrouter.suspending import runs_of, say_awake

Log = LoggerAdapter[Any]


# Prefect's runner calls hooks with keywords: the names of these parameters are its own.
def cancel_on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel what a cancelled flow run has bought: a hook for `on_cancellation`.

    `run_batch_job` has it. A flow of your own that submits or calls `finish_run` takes it as
    ``@flow(on_cancellation=[cancel_on_cancellation])``. What another flow run has taken over
    under the same run key is left alone.

    Raises:
        BatchrouterError: A batch could not be cancelled; all others were tried.
    """
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(flow_run.id)
    log = cast("Log", flow_run_logger(flow_run, flow))
    cancel_runs_of(known, log, reason=state.message or "the flow run was cancelled")


@flow(name="cancel-abandoned-runs")
def cancel_abandoned_runs(flow_run_id: UUID) -> int:
    """Cancel what a flow run has bought that was cancelled while it slept: the janitor.

    Args:
        flow_run_id: The cancelled flow run; an automation fills it in.

    Returns:
        How many runs were asked to cancel; a flow run that was not cancelled is left alone.

    Raises:
        BatchrouterError: A batch could not be cancelled; running this again tries again.
    """
    log = run_log()
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
    if flow_run.state is None or not flow_run.state.is_cancelled():
        told = flow_run.state.name if flow_run.state else "unknown"
        log.warning("flow run %s is %s and not cancelled: its batches stay", flow_run_id, told)
        return 0
    count = cancel_runs_of(flow_run, log, reason=f"flow run {flow_run.name} was cancelled")
    say_awake(flow_run_id)
    return count


def run_log() -> Log:
    """The log of the flow run that is at work."""
    return cast("Log", get_run_logger())


def cancel_runs_of(flow_run: FlowRun, log: Log, *, reason: str) -> int:
    """Cancel every run that a flow run carries, by what it left in its labels.

    Returns:
        How many were asked to cancel.

    Raises:
        BatchrouterError: The first failure, after all were tried.
    """
    from batchrouter.run import cancel_run  # noqa: PLC0415 - loads the tables' libraries

    failed: Exception | None = None
    count = 0
    for told in runs_of(flow_run):
        try:
            asked = cancel_run(
                told["job"],
                told["run_key"],
                settings=_settings_of(told),
                attempt=str(flow_run.id),
                reason=reason,
            )
        except (BatchrouterError, ValueError) as error:
            log.error("run %s was not cancelled: %s", told["run_key"], error)  # noqa: TRY400 - it is raised
            failed = failed or error
            continue
        count += asked
        log.info("run %s: %s", told["run_key"], "asked to cancel" if asked else "nothing to cancel")
    if failed is not None:
        raise failed
    return count


def _settings_of(told: Mapping[str, Any]) -> Settings:
    from prefect_batchrouter.jobs import BatchrouterJob  # noqa: PLC0415 - it imports the steps

    credentials: BatchrouterCredentials | None = None
    if told.get("credentials"):
        credentials = load_block(BatchrouterCredentials, told["credentials"])
    elif told.get("job_block"):
        credentials = load_block(BatchrouterJob, told["job_block"]).credentials
    if credentials is None:
        return Settings.from_env(runs_url=told.get("runs_url"))
    return credentials.settings(runs_url=told.get("runs_url"))
