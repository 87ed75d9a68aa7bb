"""What importing one of our packages adds to its orchestrator, or parsing a file that uses it.

    .venv-airflow/bin/python tests/benchmarks/bench_imports.py airflow
    .venv-dagster/bin/python tests/benchmarks/bench_imports.py dagster
    .venv-prefect/bin/python tests/benchmarks/bench_imports.py prefect

Each time is a fresh process's: what such a file imports anyway first, then ours on top, which alone
is shown. Medians of eleven; the CPU time is the one that a busy machine changes least.
"""

import argparse
import json
import statistics
import subprocess
import sys

ROUNDS = 11
AIRFLOW = """
from airflow.sdk import DAG, Asset, task
from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.triggers.base import BaseTrigger
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("bare"):
    EmptyOperator(task_id="bare")
"""
IMPORT_OPERATOR = (
    "from airflow_provider_batchrouter.operators.run_job import BatchrouterRunJobOperator"
)
DAG = """
with DAG("ours"):
    BatchrouterRunJobOperator(task_id="label", job="label.yaml", job_params={"day": "{{ ds }}"})
"""
ASSET = """
from dagster_batchrouter import batchrouter_assets
batchrouter_assets(job={
    "name": "a", "source": "a.parquet", "key": "id", "request": {"kind": "chat", "user": "{text}"},
    "route": {"models": ["m"]}, "budget": "1.00", "sink": "b",
})
"""
PREFECT = """
from prefect import flow, task, get_run_logger
from prefect.blocks.core import Block
"""
WAYS = {
    "airflow": {
        "import": (AIRFLOW, "import airflow_provider_batchrouter"),
        "import of the operator": (AIRFLOW, IMPORT_OPERATOR),
        "a DAG file: its imports, its parsing": (AIRFLOW, IMPORT_OPERATOR + DAG),
    },
    "dagster": {
        "import": ("import dagster", "import dagster_batchrouter"),
        "import, and the first two assets": ("import dagster", ASSET),
    },
    "prefect": {
        "import": (PREFECT, "import prefect_batchrouter"),
        "import of the flow": (PREFECT, "from prefect_batchrouter import run_batch_job"),
    },
}
PROGRAM = """
import json, os, time
exec({bare!r})
wall_s, cpu_s = time.perf_counter(), time.process_time()
exec({ours!r})
print(json.dumps([time.perf_counter() - wall_s, time.process_time() - cpu_s]))
"""


def main() -> None:
    """Measure one orchestrator's package, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("package", choices=sorted(WAYS))
    asked = parser.parse_args()
    print("| | CPU ms | wall ms |\n| --- | --- | --- |")
    for name, (bare, ours) in WAYS[asked.package].items():
        runs = [measured(bare, ours) for _ in range(ROUNDS)]
        wall_s, cpu_s = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {cpu_s * 1000:.0f} | {wall_s * 1000:.0f} |", flush=True)


def measured(bare: str, ours: str) -> tuple[float, float]:
    """Return the wall and CPU seconds that `ours` takes after `bare`, in a fresh process."""
    program = PROGRAM.format(bare=bare, ours=ours)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    wall_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return wall_s, cpu_s


if __name__ == "__main__":
    main()
