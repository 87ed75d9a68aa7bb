"""Quote first; a low price goes on by itself, a high one ends the run before anything is bought.

The steps share one run of the job, so nothing has to be handed from one to the next. Should the
DAG run fail in between, the teardown cancels what is still open.
"""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task
from airflow_provider_batchrouter.operators import (
    BatchrouterCancelOperator,
    BatchrouterLandOperator,
    BatchrouterQuoteOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.sensors import BatchrouterBatchSensor

JOB = {
    "job": "label_tickets.yaml",
    "job_params": {"lake": str(Path(__file__).parent), "day": "{{ params.day }}"},
}

with DAG(
    "approve_by_price",
    schedule=None,
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    params={
        "day": Param("2026-11-22", type="string"),
        "most_usd": Param("1.00", type="string", description="buy without asking up to this"),
    },
):
    quote = BatchrouterQuoteOperator(task_id="quote", **JOB)

    @task.short_circuit
    def is_cheap_enough(quoted: dict[str, Any], params: dict[str, Any] | None = None) -> bool:
        """Compare the locked price with what the run may spend by itself."""
        most_usd = Decimal((params or {})["most_usd"])
        print(f"{quoted['total_usd']} USD for {quoted['item_count']} requests: {quoted['why']}")
        return Decimal(quoted["total_usd"]) <= most_usd

    submit = BatchrouterSubmitOperator(task_id="submit", **JOB)
    wait = BatchrouterBatchSensor(task_id="wait", submission=submit.output, deferrable=True)
    land = BatchrouterLandOperator(task_id="land", **JOB)
    clean_up = BatchrouterCancelOperator(task_id="clean_up", job_name="label-tickets")

    is_cheap_enough(quote.output) >> submit >> wait >> land
    land >> clean_up.as_teardown(setups=submit)
