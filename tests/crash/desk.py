"""One job over a small table and a router whose lanes are told apart by their model's name."""

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchrouter import Job, Run, Settings
from batchrouter.testing import RunningRouter
from crash.scenario import batches_of

SLOW_S = 1.5
PRICE = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}


def lane(model: str, **options: Any) -> dict[str, Any]:
    return {
        "provider": f"simulated-{model}",
        "region": "global",
        "capacity_items": 100_000,
        "models": [{"name": model, **PRICE, "tasks": ["responses"]}],
        "options": options,
    }


CONFIG = {
    "credits": {"initial_usd": "100000"},
    "lanes": [
        lane("quick"),
        lane("slow", latency_s=SLOW_S),
        # Takes nothing, for a minute a try: a cancel never comes too late for what was sent.
        lane("long", is_down=True, retry_first_s=60),
        lane("refusing", failure_rate=1.0),
    ],
    "limits": {"quote_s": 90},
}


class Desk:
    """One job over a small table, opened as often as a test likes."""

    def __init__(self, root: Path, router: RunningRouter, base_url: str) -> None:
        self.root, self.router, self.base_url = root, router, base_url
        self.run_key = uuid.uuid4().hex
        rows = {"id": list(range(10)), "text": [f"card number {row}" for row in range(10)]}
        pq.write_table(pa.table(rows), root / "t.parquet")
        self._opened: list[Run] = []

    def job(self, model: str = "quick", **changes: Any) -> Job:
        fields = {
            "name": "label",
            "source": str(self.root / "t.parquet"),
            "key": "id",
            "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
            "route": {"models": [model]},
            "budget": "5.00",
            "sink": str(self.root / "labelled"),
        }
        return Job.model_validate({**fields, **changes})

    def settings(self, **changes: Any) -> Settings:
        fields: dict[str, Any] = {
            "base_url": self.base_url,
            "api_key": self.router.api_key,
            "runs_url": str(self.root / "runs"),
            "namespace": "waits",
            "max_attempts": 2,
            "retry_wait_s": 0.01,
            "poll_interval_s": 0.3,
        }
        return Settings(**{**fields, **changes})

    def open(self, model: str = "quick", **options: Any) -> Run:
        named = ("api_key", "runs_url", "max_run_usd")
        settings = self.settings(**{name: options.pop(name) for name in named if name in options})
        job = options.pop("job", None) or self.job(model, **options.pop("changes", {}))
        run = Run.open(job, run_key=self.run_key, settings=settings, **options)
        self._opened.append(run)
        return run

    def batches(self) -> list[Any]:
        return batches_of(self.router, self.run_key)

    def rows(self) -> list[dict[str, Any]]:
        return ds.dataset(self.root / "labelled", format="parquet").to_table().to_pylist()

    def facts(self) -> list[dict[str, Any]]:
        paths = sorted(self.root.glob("runs/label/*/journal/*.json"))
        return [json.loads(path.read_text())["fact"] for path in paths]

    def close(self) -> None:
        for run in self._opened:
            run.close()


def refusal(code: str, **details: Any) -> bytes:
    return json.dumps({"error": {"code": code, "message": code, "details": details}}).encode()


def wait_until(holds: Callable[[], bool], *, within_s: float = 15) -> None:
    give_up_at = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.05)
