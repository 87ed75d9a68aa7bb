"""One DAG buys, another lands: an ended batch starts it, by webhook or by polling.

`buy_labels` is over in seconds. Nothing of it waits, not even in the triggerer: the watcher of
the asset sees each batch end, once, whoever bought it.
"""

from datetime import datetime
from pathlib import Path

from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_provider_batchrouter.operators import (
    BatchrouterLandOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.triggers import BatchrouterEventTrigger

LAKE = str(Path(__file__).parent)
EVENT = "(triggering_asset_events.values() | first | first).extra.payload"

labels_ended = Asset(
    "label_tickets_ended",
    watchers=[AssetWatcher(name="batches", trigger=BatchrouterEventTrigger(job="label-tickets"))],
)

with DAG(
    "buy_labels",
    schedule=None,
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    params={"day": "2026-11-22"},
):
    BatchrouterSubmitOperator(
        task_id="submit",
        job="label_tickets.yaml",
        job_params={"lake": LAKE, "day": "{{ params.day }}"},
        run_key="{{ params.day }}",  # by which the other DAG knows the partition
    )

with DAG(
    "land_labels",
    schedule=[labels_ended],
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    max_active_runs=1,
):
    BatchrouterLandOperator(
        task_id="land",
        job="label_tickets.yaml",
        job_params={"lake": LAKE, "day": f"{{{{ {EVENT}.run_key }}}}"},
        run_key=f"{{{{ {EVENT}.run_key }}}}",
    )
