"""One DAG buys, another lands: an ended batch starts it, by webhook or by polling.

`buy_labels` is over in seconds. Nothing of it waits, not even in the triggerer: the watcher of
the asset sees each batch of the job end, once, whoever bought it: so the job has a name of its
own here, and the batches of `nightly_labels` start nothing.
"""

from datetime import datetime
from pathlib import Path

import yaml
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_provider_batchrouter.operators import (
    BatchrouterLandOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.triggers import BatchrouterEventTrigger

HERE = Path(__file__).parent
JOB = {
    **yaml.safe_load((HERE / "label_tickets.yaml").read_text(encoding="utf-8")),
    "name": "label-tickets-by-event",
}
EVENT = "(triggering_asset_events.values() | first | first).extra.payload"

labels_ended = Asset(
    "label_tickets_ended",
    watchers=[AssetWatcher(name="batches", trigger=BatchrouterEventTrigger(job=JOB["name"]))],
)

with DAG(
    "buy_labels",
    schedule=None,
    start_date=datetime(2026, 11, 21),  # noqa: DTZ001 - Airflow reads it in its own time zone
    params={"day": "2026-11-22"},
):
    BatchrouterSubmitOperator(
        task_id="submit",
        job=JOB,
        job_params={"lake": str(HERE), "day": "{{ params.day }}"},
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
        job=JOB,
        job_params={"lake": str(HERE), "day": f"{{{{ {EVENT}.run_key }}}}"},
        run_key=f"{{{{ {EVENT}.run_key }}}}",
    )
