"""The tables and jobs of these tests, and how to look at what came of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchrouter import Client
from batchrouter.testing import RunningRouter

LABELS = ["card", "transfer", "refund", "fees"]
BANKING77 = Path(__file__).resolve().parents[3] / "shared" / "data" / "banking77"

SLOW_S = 20
"""How long the slow lane takes: longer than a flow run needs to fall asleep."""


def _lane(model: str, **options: Any) -> dict[str, Any]:
    price = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}
    return {
        "provider": f"simulated-{model}",
        "region": "global",
        "capacity_items": 100_000,
        "models": [{"name": model, **price, "tasks": ["responses"]}],
        "options": options,
    }


LANES: dict[str, Any] = {
    "credits": {"initial_usd": "100000"},
    "lanes": [_lane("quick"), _lane("slow", latency_s=SLOW_S), _lane("long", latency_s=3600)],
}
"""A router whose lanes are told apart by their model's name."""


def make_table(folder: Path, rows: int = 60, name: str = "queries") -> Path:
    """Write a bundled table of texts."""
    path = folder / f"{name}.parquet"
    texts = [f"My card number {n} was charged twice, please help." for n in range(rows)]
    pq.write_table(pa.table({"query_id": list(range(rows)), "text": texts}), path)
    return path


def job_of(table: Path, sink: Path, labels: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """Describe a job that labels a table."""
    return {
        "name": "label-queries",
        "source": str(table),
        "key": "query_id",
        "request": {
            "kind": "chat",
            "system": 'Answer with JSON like {"intent": "card"}.',
            "user": "{text}",
            "output": {"intent": {"type": "string", "enum": labels or LABELS}},
            "parameters": {"max_output_tokens": 32, "temperature": 0},
        },
        "route": {"models": ["gpt-4o-mini", "claude-haiku-4"]},
        "budget": "50.00",
        "sink": str(sink),
        "keep": ["text"],
        **more,
    }


def landed(job: dict[str, Any]) -> pa.Table:
    """Read the job's whole table."""
    return ds.dataset(job["sink"], format="parquet").to_table()


def check_landed(job: dict[str, Any]) -> None:
    """Each row of the source is in the table once, and succeeded."""
    keys = pq.read_table(job["source"], columns=["query_id"]).column(0).to_pylist()
    table = landed(job)
    assert sorted(table.column("query_id").to_pylist()) == sorted(keys)
    assert set(table.column("_status").to_pylist()) == {"succeeded"}


def slow_job(folder: Path, model: str = "slow", rows: int = 20) -> dict[str, Any]:
    """Describe a job in a folder of its own, on a lane of `LANES`."""
    folder.mkdir(parents=True, exist_ok=True)
    return job_of(make_table(folder, rows), folder / "labelled", route={"models": [model]})


def batches_of(router: RunningRouter) -> list[Any]:
    """List every batch that the router has, newest first."""
    with Client(router.settings()) as client:
        return list(client.list_batches(limit=1000).data)


def batches_of_run(router: RunningRouter, run_key: str) -> list[Any]:
    """List the batches that one run has bought."""
    found = [each for each in batches_of(router) if run_key in each.metadata.values()]
    with Client(router.settings()) as client:
        return [client.retrieve_batch(each.id) for each in found]
