"""A day of a table that lies on a Spark cluster, labelled by a Prefect flow that may sleep."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect_batchrouter import cancel_on_cancellation, finish_run

JOB = str(Path(__file__).with_name("label_tickets.yaml"))


@flow(on_cancellation=[cancel_on_cancellation])
def label_tickets_on_spark(day: str, credentials: str = "prod") -> dict[str, Any]:
    """Label a day; returns the receipt."""
    return finish_run(JOB, credentials, run_key=day, params={"day": day}, wait="auto")
