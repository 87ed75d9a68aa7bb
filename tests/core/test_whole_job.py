"""The main job end to end, through the CLI in processes of its own, on a real socket.

Once on a table that the repo bundles, and once on 10,003 real queries where they are at hand.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from batchrouter.testing import FaultProxy, RunningRouter, running_router

BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"
BATCHROUTER = [sys.executable, "-m", "batchrouter"]


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


class Table:
    """A table of texts to label, and its labels."""

    def __init__(self, path: Path, key: str, text: str, labels: list[str]) -> None:
        self.path, self.key, self.text, self.labels = path, key, text, labels
        self.keys = sorted(pq.read_table(path, columns=[key]).column(0).to_pylist())


@pytest.fixture(
    scope="module",
    params=["bundled", pytest.param("banking77", marks=pytest.mark.shared_data)],
)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Table:
    if request.param == "banking77":
        labels = json.loads((BANKING77 / "categories.json").read_text())
        return Table(BANKING77 / "train.parquet", "query_id", "text", labels)
    from crash.scenario import queries

    path = tmp_path_factory.mktemp("bundled") / "queries.parquet"
    pq.write_table(queries(240), path)
    return Table(path, "query_id", "text", ["card", "transfer", "refund", "fees"])


def chat_job(table: Table) -> dict[str, Any]:
    return {
        "name": "label-chat",
        "source": str(table.path),
        "key": table.key,
        "request": {
            "kind": "chat",
            "system": 'Answer with JSON like {"intent": "card_arrival"}.',
            "user": f"{{{table.text}}}",
            "output": {"intent": {"type": "string", "enum": table.labels}},
            "parameters": {"max_output_tokens": 32, "temperature": 0},
        },
        "route": {"models": ["gpt-4o-mini", "claude-haiku-4"]},
        "budget": 50,
        "sink": "labelled",
        "keep": [table.text],
    }


def workflow_job(table: Table) -> dict[str, Any]:
    return {
        **chat_job(table),
        "name": "label-workflow",
        "request": {
            "kind": "workflow",
            "input": {"body": f"{{{table.text}}}", "labels": table.labels},
            "output": {
                "intent": {"type": "string", "enum": table.labels},
                "urgent": {"type": "boolean"},
            },
        },
        "route": {"workflow": "classify-support-tickets@v3"},
    }


def run(
    job: dict[str, Any], folder: Path, router: RunningRouter, *options: str, **env: str
) -> dict[str, Any]:
    job_path = folder / "job.yaml"
    job_path.write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [*BATCHROUTER, "run", str(job_path), "--run-key", "2026-11-22", "--json", *options],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if "BATCHROUTER" not in name},
            "BATCHROUTER_BASE_URL": router.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            **env,
        },
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check_landed(folder: Path, table: Table, receipt: dict[str, Any]) -> None:
    landed = ds.dataset(folder / "labelled", format="parquet").to_table()
    assert sorted(landed.column(table.key).to_pylist()) == table.keys
    assert set(landed.column("_status").to_pylist()) == {"succeeded"}
    assert set(landed.column("intent").to_pylist()) <= set(table.labels)
    assert receipt["rows"]["succeeded"] == len(table.keys)
    assert float(receipt["settled_usd"]) <= float(receipt["quoted_usd"])


@pytest.mark.parametrize("make_job", [chat_job, workflow_job], ids=["chat", "workflow"])
def test_every_row_is_labelled_by_polling_only(
    make_job: Any, table: Table, router: RunningRouter, tmp_path: Path
) -> None:
    receipt = run(make_job(table), tmp_path, router, "--wait", "poll")

    check_landed(tmp_path, table, receipt)


@contextmanager
def receiving(inbox: str, secret: str) -> Iterator[str]:
    """Run `batchrouter webhooks serve` in a process of its own; gives its URL."""
    process = subprocess.Popen(
        [*BATCHROUTER, "webhooks", "serve", "--inbox", inbox, "--port", "0"],
        env={**os.environ, "BATCHROUTER_WEBHOOK_SECRET": secret},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        try:
            yield "http://" + process.stderr.readline().split("http://")[1].split()[0] + "/"
        finally:
            process.terminate()


def test_every_row_is_labelled_by_webhook_only(
    table: Table, router: RunningRouter, tmp_path: Path
) -> None:
    secret = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0ISE="
    inbox = f"sqlite:///{tmp_path / 'inbox.db'}"

    with receiving(inbox, secret) as url, FaultProxy(router.base_url) as proxy:
        receipt = run(
            chat_job(table),
            tmp_path,
            router,
            "--wait",
            "webhook",
            BATCHROUTER_BASE_URL=proxy.base_url,
            BATCHROUTER_INBOX_URL=inbox,
            BATCHROUTER_WEBHOOK_URL=url,
            BATCHROUTER_WEBHOOK_SECRET=secret,
        )

    check_landed(tmp_path, table, receipt)
    assert proxy.count("GET", "/v1/batches") == 0, "polling was to be off"
    looks = proxy.count("GET", "/v1/batches/batch_*") - proxy.count("GET", "*/artifact-url")
    assert looks <= 6, "a look when the wait begins, and one for each event"


def test_a_second_run_of_the_same_key_buys_nothing_and_changes_nothing(
    table: Table, router: RunningRouter, tmp_path: Path
) -> None:
    first = run(chat_job(table), tmp_path, router)
    landed = {path: path.stat().st_mtime_ns for path in (tmp_path / "labelled").rglob("*.parquet")}
    time.sleep(0.05)

    second = run(chat_job(table), tmp_path, router)

    assert second["batch_ids"] == first["batch_ids"]
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "labelled").rglob("*.parquet")
    } == landed
