"""Batch jobs in Prefect: blocks, tasks, a flow that sleeps, and those who wake it.

Prefect imports this module to find the blocks, in every server and worker and at each
`Block.load`, so only they are here at once; the other names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect_batchrouter.credentials import BatchrouterCredentials
from prefect_batchrouter.jobs import BatchrouterJob, BatchrouterRun

if TYPE_CHECKING:
    from prefect_batchrouter.cancelling import cancel_abandoned_runs, cancel_on_cancellation
    from prefect_batchrouter.caretakers import (
        caretaker_deployments,
        save_automation,
        set_up_caretakers,
        wake_automation,
    )
    from prefect_batchrouter.flows import afinish_run, arun_batch_job, finish_run, run_batch_job
    from prefect_batchrouter.receiving import waking_receiver
    from prefect_batchrouter.sweeping import sweep_suspended_runs
    from prefect_batchrouter.tasks import (
        acancel_run,
        aland_run,
        aquote_job,
        asubmit_job,
        await_for_run,
        cancel_run,
        land_run,
        quote_job,
        submit_job,
        wait_for_run,
    )

_HOMES = {
    "acancel_run": "tasks",
    "afinish_run": "flows",
    "aland_run": "tasks",
    "aquote_job": "tasks",
    "arun_batch_job": "flows",
    "asubmit_job": "tasks",
    "await_for_run": "tasks",
    "cancel_abandoned_runs": "cancelling",
    "cancel_on_cancellation": "cancelling",
    "cancel_run": "tasks",
    "caretaker_deployments": "caretakers",
    "finish_run": "flows",
    "land_run": "tasks",
    "quote_job": "tasks",
    "run_batch_job": "flows",
    "save_automation": "caretakers",
    "set_up_caretakers": "caretakers",
    "submit_job": "tasks",
    "sweep_suspended_runs": "sweeping",
    "wait_for_run": "tasks",
    "wake_automation": "caretakers",
    "waking_receiver": "receiving",
}

__all__ = [
    "BatchrouterCredentials",
    "BatchrouterJob",
    "BatchrouterRun",
    "acancel_run",
    "afinish_run",
    "aland_run",
    "aquote_job",
    "arun_batch_job",
    "asubmit_job",
    "await_for_run",
    "cancel_abandoned_runs",
    "cancel_on_cancellation",
    "cancel_run",
    "caretaker_deployments",
    "finish_run",
    "land_run",
    "quote_job",
    "run_batch_job",
    "save_automation",
    "set_up_caretakers",
    "submit_job",
    "sweep_suspended_runs",
    "wait_for_run",
    "wake_automation",
    "waking_receiver",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'prefect_batchrouter' has no attribute {name!r}")
    value = getattr(import_module(f"prefect_batchrouter.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
