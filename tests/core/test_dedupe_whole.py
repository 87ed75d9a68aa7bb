"""A job with `dedupe` against the router: the plain job's table for fewer requests, paid once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batchrouter import Client, Job, Run
from batchrouter.testing import RunningRouter, running_router

ROWS, REQUESTS = 120, 31
LANE = {
    "provider": "simulated-flaky",
    "region": "eu",
    "capacity_items": 100_000,
    "models": [{"name": "m", "input_usd_per_mtok": "0.1", "output_usd_per_mtok": "0.4"}],
    "options": {"failure_rate": 0.2},
}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router"), config={"lanes": [LANE]}) as running:
        yield running


def _document(folder: Path, **fields: Any) -> dict[str, Any]:
    table = pa.table({
        "id": [f"k{n}" for n in range(ROWS)],
        "text": [f"My card number {n % REQUESTS} is late" for n in range(ROWS)],
    })
    pq.write_table(table, folder / "in.parquet")
    return {
        "name": "label", "source": str(folder / "in.parquet"), "key": "id", "keep": "text",
        "request": {
            "kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 32},
            "output": {"intent": {"type": "string", "enum": ["card", "fees", "refund"]},
                       "score": {"type": "number"}},
        },
        "route": {"models": ["m"]}, "budget": 1, "sink": str(folder / "table"), **fields,
    }  # fmt: skip


def _rows(folder: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(folder / "table").to_pylist(), key=lambda row: row["id"])


def _said(rows: list[dict[str, Any]]) -> list[Any]:
    names = ("id", "text", "intent", "score", "_status", "_error_code", "_request_hash")
    return [[row[name] for name in names] for row in rows]


def _paid(rows: list[dict[str, Any]]) -> Decimal:
    return sum((row["_cost_usd"] or Decimal(0) for row in rows), Decimal(0))


def test_the_outputs_are_those_of_the_plain_job(router: RunningRouter, tmp_path: Path) -> None:
    receipts: dict[bool, Any] = {}
    for dedupe in (False, True):
        folder = tmp_path / str(dedupe)
        folder.mkdir()
        job = Job.model_validate(_document(folder, dedupe=dedupe, parts={"max_items": 20}))
        with Client(router.settings()) as client:
            run = Run.open(job, run_key=f"r-{dedupe}", runs_url=str(folder / "runs"), client=client)
            receipts[dedupe] = run.execute()

    plain, once = _rows(tmp_path / "False"), _rows(tmp_path / "True")

    assert _said(once) == _said(plain)
    assert {row["_status"] for row in once} == {"succeeded", "failed"}
    assert receipts[True].saved_requests == ROWS - REQUESTS
    assert receipts[False].saved_requests == 0
    assert receipts[True].rows == receipts[False].rows
    assert receipts[True].batch_count == 2
    assert sum(lane.items for lane in receipts[True].lanes) == REQUESTS
    # What is settled is rounded up to a millionth of a dollar, batch by batch.
    assert 0 <= receipts[True].settled_usd - _paid(once) < Decimal("0.000002")
    assert receipts[True].settled_usd * 3 < receipts[False].settled_usd


@pytest.mark.parametrize(
    "point", ["manifest.before_close", "submit.after_send", "landing.before_commit"]
)
def test_a_kill_buys_nothing_twice(router: RunningRouter, tmp_path: Path, point: str) -> None:
    job_path = tmp_path / "job.yaml"
    job_path.write_text(yaml.safe_dump(_document(tmp_path, dedupe=True, name=point)))
    command = [
        sys.executable,
        "-m",
        "batchrouter",
        "run",
        str(job_path),
        "--run-key",
        "r",
        "--json",
    ]
    environment = {
        **os.environ,
        "BATCHROUTER_BASE_URL": router.base_url,
        "BATCHROUTER_API_KEY": router.api_key,
    }

    killed = {**environment, "BATCHROUTER_KILL_AT": point}
    assert subprocess.run(command, env=killed, cwd=tmp_path, check=False).returncode == -9
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)

    with Client(router.settings()) as client:
        batches = client.list_batches(limit=100).data
    mine = [each for each in batches if point in (each.metadata or {}).values()]
    assert [each.counts.total for each in mine if each.counts] == [REQUESTS]
    assert len(_rows(tmp_path)) == ROWS
