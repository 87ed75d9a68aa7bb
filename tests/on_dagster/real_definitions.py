"""The definitions that a real Dagster loads in tests; what is in them is said by the environment.

`TEST_FOLDER` has the tickets; `TEST_JOB` the job's fields, as JSON, over those of `ticket_job`.
The account comes from `BATCHROUTER_…` variables, as a person would set them. While there is a
file `stop_at.json` in the folder, processes that load this stop at the kill point that it names.
"""

# ruff: noqa: E402 - kill points are read when batchrouter is imported

import json
import os
import time
from pathlib import Path

FOLDER = Path(os.environ["TEST_FOLDER"])
for inherited in ("BATCHROUTER_STOP_AT", "BATCHROUTER_KILL_LOG"):
    os.environ.pop(inherited, None)  # a step's process has the variables of its run's worker
if (stop_at := FOLDER / "stop_at.json").exists():
    os.environ |= json.loads(stop_at.read_text())

import dagster as dg
import polars as pl
from dagster_batchrouter import (
    BatchrouterResource,
    BatchrouterTableIOManager,
    batchrouter_assets,
    build_batchrouter_cancel_sensor,
    build_batchrouter_sensor,
)

JOB = json.loads(os.environ["TEST_JOB"])
MODE = os.environ.get("TEST_MODE", "deferred")
PARTITIONS = json.loads(os.environ.get("TEST_PARTITIONS", "null"))

assets = batchrouter_assets(
    job=JOB,
    key="lake/labelled",
    mode="blocking" if MODE == "blocking" else "deferred",
    partitions_def=dg.StaticPartitionsDefinition(PARTITIONS) if PARTITIONS else None,
    io_manager_key="tables",
    pool=os.environ.get("TEST_POOL"),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=1),
)


@dg.asset(
    ins={"labelled": dg.AssetIn(["lake", "labelled"])},
    partitions_def=assets[-1].partitions_def,
    automation_condition=dg.AutomationCondition.eager(),
)
def report(labelled: pl.LazyFrame) -> dg.MaterializeResult:
    counts = labelled.group_by("intent").len().collect()
    (FOLDER / f"report-{time.time_ns()}.json").write_text(json.dumps(counts.to_dicts()))
    return dg.MaterializeResult(metadata={"rows": int(counts["len"].sum())})


defs = dg.Definitions(
    assets=[*assets, report],
    sensors=[
        build_batchrouter_sensor(
            minimum_interval_seconds=5, quiet_seconds=float(os.environ.get("TEST_QUIET_S", "600"))
        ),
        build_batchrouter_cancel_sensor(minimum_interval_seconds=5),
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=dg.AssetSelection.all(),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=5,
        ),
    ],
    resources={
        "batchrouter": BatchrouterResource(api_key=dg.EnvVar("BATCHROUTER_API_KEY")),
        "tables": BatchrouterTableIOManager(),
    },
    executor=dg.in_process_executor
    if os.environ.get("TEST_EXECUTOR") == "in_process"
    else dg.multiprocess_executor,
)
