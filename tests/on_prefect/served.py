"""What a person serves from a process of their own: the job, its caretakers, a mapped flow."""

from datetime import timedelta
from typing import Any

from prefect import flow, serve, unmapped
from prefect_batchrouter import (
    cancel_on_cancellation,
    caretaker_deployments,
    land_run,
    run_batch_job,
    submit_job,
    wait_for_run,
)


@flow(name="label-days", on_cancellation=[cancel_on_cancellation])
def label_days(job: dict[str, Any], credentials: str, days: list[str]) -> list[str]:
    """Label a table a day; returns the run keys."""
    fixed: dict[str, Any] = {"job": unmapped(job), "credentials": unmapped(credentials)}
    each = {"params": [{"day": day} for day in days]}
    bought = submit_job.map(**fixed, **each)
    waited = wait_for_run.map(**fixed, **each, wait_for=[bought])
    receipts = land_run.map(**fixed, **each, wait_for=[waited]).result()
    return [receipt["run_key"] for receipt in receipts]


if __name__ == "__main__":
    serve(
        run_batch_job.to_deployment("served"),
        label_days.to_deployment("served"),
        *caretaker_deployments("silent", sweep_every=timedelta(seconds=20)),
    )
