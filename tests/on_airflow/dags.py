"""The DAG file of the end-to-end tests; it reads what differs from the environment."""

DAGS = """
import json
import os
from pathlib import Path

import pyarrow as pa
from airflow.sdk import DAG, Asset, AssetAlias, AssetWatcher, task

from airflow_provider_batchrouter.operators import (
    BatchrouterCancelOperator,
    BatchrouterLandOperator,
    BatchrouterQuoteOperator,
    BatchrouterRunJobOperator,
    BatchrouterSubmitOperator,
)
from airflow_provider_batchrouter.sensors import BatchrouterBatchSensor
from airflow_provider_batchrouter.triggers import BatchrouterEventTrigger


def note_pid(context):
    Path(os.environ["TEST_TASK_PID"]).write_text(str(os.getpid()))


KILLABLE = {"retries": 2, "retry_delay": 1, "on_execute_callback": note_pid}
# A batch that ends in the second in which its task defers can be too fast for Airflow: the end of
# the worker that deferred is then taken for the end of the task that was resumed. A retry goes on.
GOES_ON = {"retries": 2, "retry_delay": 1}
JOBS = json.loads(Path(os.environ["TEST_JOBS"]).read_text())

with DAG("whole", schedule=None, catchup=False, default_args=GOES_ON):
    BatchrouterRunJobOperator(
        task_id="label",
        job=JOBS["quick"],
        job_params={"day": "1"},
        deferrable=True,
        outlets=[AssetAlias("labelled")],
    )

with DAG("long", schedule=None, catchup=False):
    BatchrouterRunJobOperator(task_id="label", job=JOBS["long"], deferrable=True, **KILLABLE)

with DAG("blocking", schedule=None, catchup=False):
    BatchrouterRunJobOperator(task_id="label", job=JOBS["long"], deferrable=False, **KILLABLE)

with DAG("endless", schedule=None, catchup=False):
    BatchrouterRunJobOperator(task_id="label", job=JOBS["endless"], deferrable=True)

with DAG("endless_blocking", schedule=None, catchup=False):
    BatchrouterRunJobOperator(task_id="label", job=JOBS["endless"], deferrable=False)

with DAG("pushed", schedule=None, catchup=False, default_args=GOES_ON):
    BatchrouterRunJobOperator(task_id="label", job=JOBS["quick"], deferrable=True, wait="webhook")

for name in sorted({"quick", "banking77"} & JOBS.keys()):
    for wait in ("poll", "webhook"):
        with DAG(f"{name}_by_{wait}", schedule=None, catchup=False, default_args=GOES_ON):
            BatchrouterRunJobOperator(task_id="label", job=JOBS[name], deferrable=True, wait=wait)

with DAG("steps", schedule=None, catchup=False, default_args=GOES_ON):
    quote = BatchrouterQuoteOperator(task_id="quote", job=JOBS["steps"])
    submit = BatchrouterSubmitOperator(task_id="submit", job=JOBS["steps"])
    wait = BatchrouterBatchSensor(task_id="wait", submission=submit.output, deferrable=True)
    land = BatchrouterLandOperator(task_id="land", job=JOBS["steps"])
    clean_up = BatchrouterCancelOperator(task_id="clean_up", job_name=JOBS["steps"]["name"])
    quote >> submit >> wait >> land >> clean_up.as_teardown(setups=submit)

with DAG("mapped", schedule=None, catchup=False, default_args=GOES_ON):
    BatchrouterRunJobOperator.partial(
        task_id="label", job=JOBS["quick"], deferrable=True
    ).expand(job_params=[{"day": "1"}, {"day": "2"}, {"day": "3"}])

with DAG("decorated", schedule=None, catchup=False, default_args=GOES_ON):

    @task.batchrouter(job=JOBS["in_memory"], deferrable=True)
    def label(first: int, ds: str | None = None) -> pa.Table:
        with Path(os.environ["TEST_CALLS"]).open("a") as calls:
            calls.write("called\\n")
        ids = list(range(first, first + 5))
        return pa.table({"id": ids, "text": [f"row {number}" for number in ids]})

    label(10)

with DAG("common_ai", schedule=None, catchup=False, default_args=GOES_ON):

    @task.llm_batch(
        llm_conn_id="batchrouter_default",
        model_id="batchrouter:quick",
        result_path=f"file://{os.environ['TEST_RESULTS']}",
        max_tokens=8,
        poll_interval=30,
        deferrable=True,
    )
    def ask():
        return [f"question {number}" for number in range(7)]

    ask()

ended = Asset(
    "label_steps_ended",
    watchers=[AssetWatcher(name="batches", trigger=BatchrouterEventTrigger(job="steps"))],
)

with DAG("watching", schedule=[ended], catchup=False, default_args=GOES_ON):

    @task
    def tell(triggering_asset_events=None):
        return [
            event.extra for events in triggering_asset_events.values() for event in events
        ]

    tell()
"""
