"""Deployments that one process serves, without a work pool; and what is told of their tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from batchrouter.testing import RunningRouter
from on_prefect.scene import (
    batches_of,
    batches_of_run,
    check_landed,
    job_of,
    landed,
    make_table,
    slow_job,
)
from on_prefect.stage import Actor, Stage, until

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("stage")]


@pytest.fixture(scope="module")
def serving(stage: Stage, accounts: RunningRouter) -> Iterator[Actor]:
    script = Path(__file__).with_name("served.py")
    actor = stage.actor("serving", [*stage.command("python"), str(script)])
    actor.start()

    def is_known() -> bool:
        with stage.client() as client:
            try:
                client.read_deployment_by_name("label-days/served")
                client.read_deployment_by_name("run-batch-job/served")
            except ObjectNotFound:
                return False
        return True

    try:
        until(is_known, "the served deployments")
        yield actor
    finally:
        actor.end()


def events_of(stage: Stage, name: str, resource_id: str) -> list[dict[str, Any]]:
    wanted = {"event": {"name": [name]}, "resource": {"id": [resource_id]}}
    found = httpx.post(f"{stage.api_url}/events/filter", json={"filter": wanted}, timeout=30)
    assert found.status_code == 200, found.text
    return list(found.json()["events"])


def test_a_served_flow_sleeps_and_the_served_sweeper_wakes_it(
    stage: Stage, accounts: RunningRouter, serving: Actor, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)

    flow_run_id = stage.start_run("run-batch-job/served", job=job, credentials="silent")
    stage.wait_for(flow_run_id, "Suspended")
    until(lambda: not stage.pids_of(flow_run_id), "the end of its process", 30)
    stage.wait_for(flow_run_id, "Completed", timeout_s=300)

    check_landed(job)
    assert len(batches_of_run(accounts, str(flow_run_id))) == 1
    key = f"file://{job['sink']}"
    name = "prefect.asset.materialization.succeeded"
    [told] = until(lambda: events_of(stage, name, key), "the asset's event")
    assert told["payload"]["rows"] == told["payload"]["rows_succeeded"] == 20
    assert 0 < float(told["payload"]["settled_usd"]) <= float(told["payload"]["quoted_usd"])


def test_mapped_over_ten_partitions(
    stage: Stage, accounts: RunningRouter, serving: Actor, tmp_path: Path
) -> None:
    days = [f"2026-11-{day:02}" for day in range(1, 11)]
    for day in days:
        make_table(tmp_path, 6, f"day-{day}")
    job = job_of(
        Path("unused"),
        tmp_path / "labelled",
        source=str(tmp_path / "day-${params.day}.parquet"),
        params={"day": None},
        route={"models": ["slow"]},
    )

    flow_run_id = stage.start_run("label-days/served", job=job, credentials="silent", days=days)
    stage.wait_for(flow_run_id, "Completed", timeout_s=300)

    assert landed(job).num_rows == 60
    keys = [each.metadata["batchrouter_run_key"] for each in batches_of(accounts)]
    assert len([key for key in keys if key.startswith(str(flow_run_id))]) == 10
