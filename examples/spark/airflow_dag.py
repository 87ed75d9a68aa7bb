"""A day of a table that lies on a Spark cluster, labelled every night from Airflow.

The worker is only a client of the cluster, and holds nothing while the batches are out.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG
from airflow_provider_batchrouter.operators import BatchrouterRunJobOperator

with DAG(
    "nightly_labels_on_spark",
    schedule="@daily",
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    catchup=False,
):
    BatchrouterRunJobOperator(
        task_id="label",
        job="label_tickets.yaml",
        job_params={"day": "{{ ds }}"},
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    )
