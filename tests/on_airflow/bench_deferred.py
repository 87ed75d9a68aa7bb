"""Measures hundreds of deferred tasks on a real Airflow: requests at the router, CPU, memory.

    .venv-airflow/bin/python tests/on_airflow/bench_deferred.py --tasks 500 --seconds 120

Mapped tasks, each deferred on the provider's own trigger, in a real triggerer; beside it as many
on the trigger of common-ai's `LLMBatchOperator`, which our adapter points at the same router. They
start from their trigger, without a worker: what is measured is the wait. Prints a table.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCHES = 20
POLL_S = 30
"""What both triggers poll by: the shortest interval that common-ai takes."""

SETTLED_S = 30
DAGS = f"""
import json, os
from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs

PATHS = {{
    "batchrouter": "airflow_provider_batchrouter.triggers.BatchrouterBatchTrigger",
    "common_ai": "airflow.providers.common.ai.triggers.llm_batch.LLMBatchTrigger",
}}

class Waits(BaseOperator):
    start_from_trigger = True

    def __init__(self, *, number=0, **kwargs):
        super().__init__(**kwargs)

def kwargs_of(provider, batch_id):
    if provider == "batchrouter":
        return {{"batch_ids": [batch_id], "until": "2100-01-01T00:00:00+00:00", "wait": "poll"}}
    return {{
        "llm_conn_id": "batchrouter_default", "adapter": "batchrouter", "batch_id": batch_id,
        "poll_interval": {POLL_S}, "end_time": 4e9, "cancel_on_kill": False,
        "cancel_on_timeout": False,
    }}

for provider, path in PATHS.items():
    with DAG(provider, schedule=None, catchup=False, max_active_tasks=10_000):
        for number, batch_id in enumerate(json.loads(os.environ["BENCH_BATCHES"])):
            class Wait(Waits):
                start_trigger_args = StartTriggerArgs(
                    trigger_cls=path, trigger_kwargs=kwargs_of(provider, batch_id),
                    next_method="execute_complete", next_kwargs=None, timeout=None,
                )
            Wait.partial(task_id=f"wait_{{number}}", max_active_tis_per_dag=None).expand(
                number=list(range(int(os.environ["BENCH_EACH"])))
            )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--of", nargs="+", default=["no one", "batchrouter", "common_ai"])
    asked = parser.parse_args()
    from batchrouter.testing import FaultProxy, running_router
    from on_airflow.airflow_processes import Airflow, connection
    from on_airflow.bench_waits import bought
    from on_airflow.lanes import lane

    config: dict[str, Any] = {
        "credits": {"initial_usd": "100000"},
        "lanes": [lane("endless", 36_000)],
    }
    with (
        tempfile.TemporaryDirectory() as home,
        running_router(config=config) as router,
        FaultProxy(router.base_url) as proxy,
    ):
        extra = {"poll_interval_s": str(POLL_S)}
        airflow = Airflow(
            Path(home),
            {
                "BENCH_BATCHES": json.dumps(bought(router, BATCHES)),
                "BENCH_EACH": str(asked.tasks // BATCHES),
                **connection(host=proxy.base_url, password=router.api_key, extra=extra),
            },
        )
        (Path(home) / "dags" / "waits.py").write_text(DAGS)
        try:
            airflow.start()
            print("| deferred tasks of | requests a minute | CPU a minute (s) | memory (MB) |")
            print("| --- | ---: | ---: | ---: |")
            for provider in asked.of:
                told = measured(airflow, provider, asked, lambda: len(proxy.seen))
                print(f"| {provider} | {told} |", flush=True)
        finally:
            airflow.stop()


def measured(airflow: Any, provider: str, asked: Any, requests: Callable[[], int]) -> str:
    """Let the tasks of one provider wait, and measure while they do."""
    run_id = None
    if provider != "no one":
        run_id = airflow.trigger(provider)
        before, asks = requests(), asked.tasks if provider == "common_ai" else 1
        airflow.wait_until(
            lambda: len(running(airflow, provider, run_id)) == asked.tasks,
            600,
            "all to be deferred",
        )
        airflow.wait_until(lambda: requests() - before >= asks, 600, "each to have asked once")
    time.sleep(SETTLED_S)
    before, cpu_before_s, began_s = requests(), cpu_s(airflow), time.monotonic()
    time.sleep(asked.seconds)
    minutes = (time.monotonic() - began_s) / 60
    told = (requests() - before) / minutes, (cpu_s(airflow) - cpu_before_s) / minutes
    memory_mb = sum(resident_mb(pid) for pid in processes(airflow))
    if run_id is not None:
        airflow.call("PATCH", f"/api/v2/dags/{provider}/dagRuns/{run_id}", {"state": "failed"})
        airflow.wait_until(lambda: not running(airflow, provider, run_id), 300, "all to have ended")
        airflow.kill_process("triggerer")  # the next starts from nothing
        airflow.start_process("triggerer")
    return f"{told[0]:.0f} | {told[1]:.1f} | {memory_mb:.0f}"


def running(airflow: Any, dag_id: str, run_id: str) -> list[Any]:
    """The tasks of a run that are deferred, all pages of them."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?state=deferred&limit=100"
    found: list[Any] = []
    while page := airflow.call("GET", f"{path}&offset={len(found)}")["task_instances"]:
        found += page
    return found


def processes(airflow: Any) -> list[int]:
    from on_airflow.airflow_processes import descendants

    pid = airflow.pid_of("triggerer")
    return [pid, *descendants(pid)]


def cpu_s(airflow: Any) -> float:
    """What the triggerer and its runner have used by now."""
    ticks = 0
    for pid in processes(airflow):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
