"""One job to kill over and over: its files, its command, and what must be true afterwards."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchrouter import Client
from batchrouter.testing import RunningRouter

SIGKILLED = -9
ROWS = 24

PURCHASE_COLUMNS = ("_batch_id", "_completed_at")
"""What may differ between two undisturbed runs of the same job."""

JOB = """
name: label-queries
source: {source}
key: query_id
request:
  kind: chat
  system: You label bank queries.
  user: "{{text}}"
  output:
    intent: {{type: string, enum: [card, transfer, refund, fees]}}
    urgent: {{type: boolean}}
  parameters: {{max_output_tokens: 32}}
route: {{models: [gpt-4o-mini, claude-haiku-4]}}
budget: 5.00
sink: {sink}
keep: [text]
{more}
"""


def queries(rows: int = ROWS) -> pa.Table:
    words = ("card", "transfer", "refund", "fees")
    columns = {
        "query_id": [f"q{row:05d}" for row in range(rows)],
        "text": [f"My {words[row % 4]} number {row} — is it “late”?" for row in range(rows)],
    }
    return pa.table(columns, schema=pa.schema(dict.fromkeys(columns, pa.string())))


@dataclass
class Scenario:
    """A job on disk and the router that it buys from."""

    root: Path
    base_url: str
    api_key: str
    run_key: str = "2026-11-22"
    more: str = ""
    rows: int = ROWS
    env: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        pq.write_table(queries(self.rows), self.root / "queries.parquet")
        job = JOB.format(source=self.root / "queries.parquet", sink=self.table_path, more=self.more)
        self.job_path.write_text(job)

    @property
    def job_path(self) -> Path:
        return self.root / "job.yaml"

    @property
    def table_path(self) -> Path:
        return self.root / "labelled"

    @property
    def runs_path(self) -> Path:
        return self.root / "runs"

    def run(
        self, *options: str, kill_at: str = "", timeout_s: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run the job as a user does, in a process of its own, to die at a point if asked."""
        return subprocess.run(
            [
                *BATCHROUTER,
                "run",
                str(self.job_path),
                "--run-key",
                self.run_key,
                "--json",
                *options,
            ],
            env=self.environment(kill_at=kill_at),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def environment(self, *, kill_at: str = "") -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if "BATCHROUTER" not in name},
            "BATCHROUTER_BASE_URL": self.base_url,
            "BATCHROUTER_API_KEY": self.api_key,
            "BATCHROUTER_RUNS_URL": str(self.runs_path),
            "BATCHROUTER_NAMESPACE": "crash-tests",
            "BATCHROUTER_KILL_AT": kill_at,
            **self.env,
        }

    def receipt(self) -> dict[str, Any]:
        """Run undisturbed to the end."""
        done = self.run()
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def table(self) -> list[dict[str, Any]]:
        """The landed rows in the order of their keys, without what a purchase decides."""
        landed = ds.dataset(self.table_path, format="parquet").to_table()
        kept = [name for name in landed.column_names if name not in PURCHASE_COLUMNS]
        return landed.select(kept).sort_by("query_id").to_pylist()


BATCHROUTER = [sys.executable, "-m", "batchrouter"]


def batches_of(router: RunningRouter, run_key: str) -> list[Any]:
    """Every batch at the router that carries a run key."""
    with Client(base_url=router.base_url, api_key=router.api_key) as client:
        found = client.list_batches(limit=1000).data
    return [each for each in found if each.metadata.get("batchrouter_run_key") == run_key]
