"""A real Airflow, a router in its own process, a table and the DAGs that run jobs over it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchrouter import Client
from batchrouter.testing import FaultProxy, RunningRouter, running_router
from batchrouter.webhooks.signing import mint_secret
from on_airflow.airflow_processes import Airflow, connection
from on_airflow.dags import DAGS
from on_airflow.lanes import lane

LONG_S = 15.0
ENDLESS_S = 600.0
ROWS = 20
BANKING77 = Path(__file__).resolve().parents[3] / "shared" / "data" / "banking77"
WEBHOOKS = "/batchrouter/webhooks/batchrouter_default"


class Stage:
    """Everything that an end-to-end test looks at."""

    def __init__(self, root: Path, router: RunningRouter, proxy: FaultProxy) -> None:
        self.root = root
        self.router = router
        self.proxy = proxy
        self.runs = root / "runs"
        self.calls = root / "calls"
        self.results = root / "results"
        self.task_pid = root / "task.pid"
        self.webhook_secret = mint_secret()
        self.jobs = _jobs(root)
        self.airflow = Airflow(root / "home", {})
        self.airflow.env |= self._environment()

    def _environment(self) -> Mapping[str, str]:
        (self.root / "jobs.json").write_text(json.dumps(self.jobs))
        return {
            "TEST_JOBS": str(self.root / "jobs.json"),
            "TEST_CALLS": str(self.calls),
            "TEST_RESULTS": str(self.results),
            "TEST_TASK_PID": str(self.task_pid),
            **connection(
                host=self.proxy.base_url,
                password=self.router.api_key,
                extra={
                    "runs_url": str(self.runs),
                    "inbox_url": f"sqlite:///{self.root}/inbox.db",
                    "webhook_url": f"{self.airflow.base_url}{WEBHOOKS}",
                    "webhook_secret": self.webhook_secret,
                    "poll_interval_s": "2",
                },
            ),
        }

    def batches(self, dag_id: str, run_id: str | None = None) -> list[Any]:
        """The batches that a DAG, or one of its runs, bought."""
        with Client(self.router.settings()) as client:
            page = client.list_batches(limit=1000)
        keys = [each.metadata.get("batchrouter_run_key", "") for each in page.data]
        return [
            batch
            for batch, key in zip(page.data, keys, strict=True)
            if key.startswith(f"{dag_id}/") and (run_id is None or run_id in key)
        ]

    def landed(self, job: str, run_key: str = "") -> pa.Table:
        table = ds.dataset(self.jobs[job]["sink"], format="parquet").to_table()
        keys = table.column("_run_key").to_pylist()
        return table.filter(pa.array([key.startswith(run_key) for key in keys]))

    def landed_keys(self, job: str, run_key: str) -> list[Any]:
        """The keys of the job's own table that one run has landed."""
        return sorted(self.landed(job, run_key).column(self.jobs[job]["key"]).to_pylist())

    def landed_ids(self, job: str, run_key: str = "") -> list[int]:
        return sorted(self.landed(job.replace("-", "_"), run_key).column("id").to_pylist())

    def wait_for_watching_run(self) -> None:
        self.airflow.wait_until(
            lambda: any(each["state"] == "success" for each in self.airflow.runs("watching")),
            90,
            "the DAG that an ended batch starts",
        )

    def watched(self) -> list[dict[str, Any]]:
        """What all runs of the watching DAG were told."""
        told: list[dict[str, Any]] = []
        for each in self.airflow.runs("watching"):
            told += [
                event["payload"]
                for event in self.airflow.xcom("watching", each["dag_run_id"], "tell")
            ]
        return told


@contextmanager
def running_stage(root: Path) -> Iterator[Stage]:
    """Start a router, a proxy in front of it and an Airflow; end them all."""
    config = {
        "credits": {"initial_usd": "100000"},
        "lanes": [lane("quick", 1.0), lane("long", LONG_S), lane("endless", ENDLESS_S)],
    }
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy())
        router = stack.enter_context(
            running_router(root / "router", config=config, public_url=proxy.base_url)
        )
        proxy.upstream = router.base_url
        stage = Stage(root, router, proxy)
        (stage.airflow.home / "dags" / "jobs.py").write_text(DAGS)
        stack.callback(stage.airflow.stop)
        stage.airflow.start()
        yield stage


def _jobs(root: Path) -> dict[str, dict[str, Any]]:
    for day in (1, 2, 3):
        ids = list(range(day * 100 - 100, day * 100 - 100 + ROWS))
        (root / f"day={day}").mkdir()
        rows = pa.table({"id": ids, "text": [f"question {number}" for number in ids]})
        pq.write_table(rows, root / f"day={day}" / "t.parquet")
    jobs = {
        name: {
            "name": name.replace("_", "-"),
            "params": {"day": "1"},
            "source": f"{root}/day=${{params.day}}",
            "key": "id",
            "request": {
                "kind": "chat",
                "user": "{text}",
                "parameters": {"max_output_tokens": 8},
            },
            "route": {"models": [name if name in {"long", "endless"} else "quick"]},
            "budget": "5.00",
            "sink": str(root / f"labelled_{name}"),
        }
        for name in ("quick", "long", "endless", "steps", "in_memory")
    }
    del jobs["in_memory"]["source"]
    if BANKING77.is_dir():
        jobs["banking77"] = _banking77(jobs["quick"], root)
    return jobs


def _banking77(like: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Real queries to a bank, each labelled with one of 77 intents."""
    labels = json.loads((BANKING77 / "categories.json").read_text())
    return {
        **like,
        "name": "banking77",
        "source": str(BANKING77 / "train.parquet"),
        "key": "query_id",
        "request": {
            "kind": "chat",
            "system": "Answer with the intent.",
            "user": "{text}",
            "output": {"intent": {"type": "string", "enum": labels}},
            "parameters": {"max_output_tokens": 32},
        },
        "budget": "50.00",
        "sink": str(root / "labelled_banking77"),
    }
