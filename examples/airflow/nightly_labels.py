"""Every night: label the day's tickets in one task that holds no worker while the batch is out.

The partition is picked by the date of the DAG run. Clear the task, kill its worker, restart the
triggerer: the batch is bought once.
"""

from datetime import datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, AssetAlias
from airflow_provider_batchrouter.operators import BatchrouterRunJobOperator

HERE = Path(__file__).parent

with DAG(
    "nightly_labels",
    schedule="@daily",
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    catchup=False,
):
    BatchrouterRunJobOperator(
        task_id="label",
        job="label_tickets.yaml",
        job_params={"lake": str(HERE), "day": "{{ ds }}"},
        deferrable=True,
        retries=2,  # each goes on where the last one stopped
        retry_delay=timedelta(seconds=30),
        max_failed_share=0.05,
        outlets=[AssetAlias("labelled_tickets")],
    )
