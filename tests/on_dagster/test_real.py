"""On a real Dagster: daemon, webserver and code server as processes, the router in its own."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from batchrouter import Client
from batchrouter.testing import RunningRouter
from batchrouter.webhooks.signing import mint_secret
from on_dagster.conftest import DAYS, batch_count, ticket_job, write_tickets
from on_dagster.deployment import Deployment, running_deployment

DEFINITIONS = Path(__file__).with_name("real_definitions.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "dagster"
BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"
SUBMISSION, TABLE = "lake/labelled_submission", "lake/labelled"


class Scene:
    """A deployment's folder: its tickets, its table, its environment."""

    def __init__(self, folder: Path, router: RunningRouter, **job: Any) -> None:
        self.folder = folder
        self.router = router
        self.job = {**ticket_job(folder), **job}
        self.env = {
            "TEST_FOLDER": str(folder),
            "TEST_JOB": json.dumps(self.job),
            "TEST_EXECUTOR": "in_process",
            "BATCHROUTER_BASE_URL": router.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            "BATCHROUTER_RUNS_URL": str(folder / "runs"),
        }

    def with_days(self) -> None:
        """A file of tickets for each of ten days, which are the partitions."""
        for day in DAYS.get_partition_keys():
            write_tickets(self.folder / "tickets" / f"{day}.csv", day)
        self.env["TEST_PARTITIONS"] = json.dumps(DAYS.get_partition_keys())

    def deployment(self, **options: Any) -> "contextlib.AbstractContextManager[Deployment]":
        return running_deployment(self.folder / "dagster", DEFINITIONS, self.env, **options)

    def batches(self) -> int:
        settings = self.router.settings(runs_url=str(self.folder / "runs"))
        with Client(settings) as client:
            return batch_count(client)

    def keys(self) -> list[str]:
        """The keys of the landed rows, each of which must be there once."""
        table = ds.dataset(self.job["sink"], format="parquet").to_table()
        return sorted(table.column(self.job["key"]).to_pylist())

    def reported_rows(self) -> int:
        """Rows that the asset downstream has seen, over all of its runs."""
        files = self.folder.glob("report-*.json")
        return sum(each["len"] for path in files for each in json.loads(path.read_text()))


@contextlib.contextmanager
def receiving(scene: Scene) -> Iterator[None]:
    """Run the webhook receiver as a person would, and tell the scene of it."""
    secret = mint_secret()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    scene.env |= {
        "BATCHROUTER_INBOX_URL": f"sqlite:///{scene.folder}/inbox.db",
        "BATCHROUTER_WEBHOOK_URL": f"http://127.0.0.1:{port}/hook",
        "BATCHROUTER_WEBHOOK_SECRET": secret,
    }
    kept = {key: value for key, value in os.environ.items() if "BATCHROUTER" not in key}
    command = [sys.executable, "-m", "batchrouter", "webhooks", "serve", "--port", str(port)]
    with (scene.folder / "receiver.log").open("wb") as log:
        receiver = subprocess.Popen(command, env={**kept, **scene.env}, stdout=log, stderr=log)
    try:
        yield
    finally:
        receiver.terminate()
        receiver.wait(20)


@pytest.fixture
def tickets(tmp_path: Path, router: RunningRouter) -> Scene:
    scene = Scene(tmp_path, router)
    scene.with_days()
    return scene


@pytest.mark.timeout(600)
def test_a_submission_takes_one_run_and_the_sensor_lands_it_for_who_is_downstream(
    tickets: Scene,
) -> None:
    day = "2026-11-03"
    with receiving(tickets), tickets.deployment() as dagster:
        run_id = dagster.launch(SUBMISSION, partition=day)
        submitted = dagster.wait_for_run(run_id)
        dagster.wait_until(lambda: dagster.materialized(TABLE) == {day}, "the table", 180)
        dagster.wait_until(lambda: dagster.materialized("report") == {day}, "the report", 180)
        statuses = dagster.statuses_at_rest()

    assert submitted.value == "SUCCESS"
    assert statuses == [(SUBMISSION, "SUCCESS"), (TABLE, "SUCCESS"), ("report", "SUCCESS")]
    assert tickets.keys() == [f"{day}-{row}" for row in range(3)]
    assert tickets.reported_rows() == 3
    assert tickets.batches() == 1


@pytest.mark.drill
def test_a_backfill_of_ten_partitions_completes_and_its_tables_land_by_polling(
    tickets: Scene,
) -> None:
    days = list(DAYS.get_partition_keys())
    tickets.env["TEST_POOL"] = "batchrouter"
    with tickets.deployment(max_concurrent_runs=3) as dagster:
        dagster.instance.event_log_storage.set_concurrency_slots("batchrouter", 1)
        backfill = dagster.backfill(SUBMISSION, partitions=days)
        dagster.wait_until(
            lambda: dagster.backfill_status(backfill).startswith("COMPLETED"), "the backfill", 600
        )
        ended = dagster.backfill_status(backfill)
        dagster.wait_until(lambda: len(dagster.materialized(TABLE)) == 10, "ten tables", 600)
        dagster.wait_until(lambda: len(dagster.materialized("report")) == 10, "ten reports", 600)
        statuses = dagster.statuses_at_rest()
        steps = ["lake__labelled_submission", "lake__labelled"]
        in_pool = sorted(each for step in steps for each in dagster.step_times(step))

    assert ended == "COMPLETED_SUCCESS"
    assert {status for _, status in statuses} == {"SUCCESS"}
    assert len(statuses) == 30
    assert len(in_pool) == 20
    assert all(end <= begin for (_, end), (begin, _) in pairwise(in_pool)), "two were in the pool"
    assert tickets.keys() == sorted(f"{day}-{row}" for day in days for row in range(3))
    assert tickets.batches() == 10


@pytest.mark.drill
@pytest.mark.shared_data
@pytest.mark.parametrize("how", ["polling", "webhook"])
def test_banking77_is_submitted_landed_and_reported(
    tmp_path: Path, router: RunningRouter, how: str
) -> None:
    labels = json.loads((BANKING77 / "categories.json").read_text())
    scene = Scene(
        tmp_path,
        router,
        name="label-banking77",
        params={},
        source=str(BANKING77 / "train.parquet"),
        key="query_id",
        keep=["text"],
        budget="50.00",
        request={
            "kind": "chat",
            "system": "Answer with the intent.",
            "user": "{text}",
            "output": {"intent": {"type": "string", "enum": labels}},
            "parameters": {"max_output_tokens": 32},
        },
    )
    with contextlib.ExitStack() as stack:
        if how == "webhook":
            stack.enter_context(receiving(scene))
        dagster = stack.enter_context(scene.deployment())
        submitted = dagster.wait_for_run(dagster.launch(SUBMISSION))
        dagster.wait_until(lambda: dagster.materialized(TABLE), "the table", 300)
        dagster.wait_until(lambda: dagster.materialized("report"), "the report", 300)

    assert submitted.value == "SUCCESS"
    wanted = ds.dataset(BANKING77 / "train.parquet").to_table(columns=["query_id"])
    assert scene.keys() == sorted(wanted.column(0).to_pylist())
    assert scene.reported_rows() == 10_003
    assert scene.batches() == 1


@pytest.mark.drill
def test_the_component_of_the_example_project_lands_on_a_real_daemon(
    tmp_path: Path, router: RunningRouter
) -> None:
    project, day = tmp_path / "project", "2026-11-02"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("router", "runs"))
    env = {
        "PYTHONPATH": str(project / "src"),
        "BATCHROUTER_BASE_URL": router.base_url,
        "BATCHROUTER_API_KEY": router.api_key,
    }
    definitions = project / "src/ticket_labels/definitions.py"
    with running_deployment(project, definitions, env) as dagster:
        submitted = dagster.wait_for_run(dagster.launch("complaints_submission", partition=day))
        dagster.wait_until(lambda: dagster.materialized("complaints") == {day}, "the table", 180)
        statuses = dagster.statuses_at_rest()

    assert submitted.value == "SUCCESS"
    assert statuses == [("complaints_submission", "SUCCESS"), ("complaints", "SUCCESS")]
    rows = ds.dataset(project / "data/complaints", format="parquet").to_table().to_pylist()
    assert {row["ticket_id"] for row in rows} == {"T-201", "T-202", "T-203", "T-204"}
    assert {type(row["is_complaint"]) for row in rows} == {bool}
