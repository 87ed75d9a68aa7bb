"""What is set up by one command, and what is said where it would not be found again."""

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client, unmapped
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.types.entrypoint import EntrypointType
from prefect_batchrouter import run_batch_job, submit_job
from prefect_batchrouter.blocking import blocking
from prefect_batchrouter.caretakers import CANCEL_AUTOMATION

from batchrouter.testing import RunningRouter
from on_prefect.scene import check_landed, job_of, make_table, slow_job
from on_prefect.stage import POOL, Stage

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("stage")]

SETUP = ["prefect-batchrouter", "setup", "--credentials", "silent", "--sweep-every", "3600"]


def test_set_up_by_the_command_and_again(stage: Stage, accounts: RunningRouter) -> None:
    first = stage.run(*SETUP, "--pool", POOL)
    again = stage.run(*SETUP, "--pool", POOL, "--flow", "label-days")

    assert again == first
    with stage.client() as client:
        sweeper = client.read_deployment_by_name("sweep-suspended-runs/batchrouter")
        janitor = client.read_deployment_by_name("cancel-abandoned-runs/batchrouter")
        named = [each.name for each in client.read_automations()]
    assert {sweeper.work_pool_name, janitor.work_pool_name} == {POOL}
    assert [each.schedule.interval for each in sweeper.schedules] == [timedelta(hours=1)]
    assert named.count(CANCEL_AUTOMATION) == 1
    assert str(sweeper.id) in first
    assert str(janitor.id) in first


def test_a_pool_that_is_not_there_is_named(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="there is no work pool 'nowhere'"):
        stage.run(*SETUP, "--pool", "nowhere")


def test_a_local_disk_is_warned_of_where_runs_start_on_other_hosts(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    with stage.client() as client:
        client.create_work_pool(WorkPoolCreate(name="containers", type="docker"))
    deployment = blocking(run_batch_job.to_deployment)(
        "elsewhere", work_pool_name="containers", entrypoint_type=EntrypointType.MODULE_PATH
    )
    blocking(deployment.apply)()
    job = slow_job(tmp_path)
    flow_run_id = stage.start_run(
        "run-batch-job/elsewhere", job=job, credentials="silent", wait="poll"
    )

    stage.run("prefect", "flow-run", "execute", str(flow_run_id))  # what a container does

    check_landed(job)
    with stage.client() as client:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        said = "\n".join(each.message for each in client.read_logs(wanted))
    assert "results are kept on a local disk" in said
    assert "runs_url is a local folder" in said
    assert "the work pool is of type 'docker'" in said


def test_a_limit_by_tag_bounds_the_steps(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    for day in range(4):
        make_table(tmp_path, 4, f"day-{day}")
    source = str(tmp_path / "day-${params.day}.parquet")
    job = job_of(
        Path("unused"),
        tmp_path / "labelled",
        source=source,
        params={"day": None},
        route={"models": ["quick"]},
    )
    days = [{"day": str(day)} for day in range(4)]
    ran: dict[str, Any] = {}

    @flow
    def mapped() -> None:
        from prefect.runtime import flow_run

        ran["id"] = flow_run.get_id()
        bought = submit_job.map(unmapped(job), credentials=unmapped("silent"), params=days)
        assert len(bought.result()) == 4

    with stage.client() as client:
        client.create_concurrency_limit(tag="batchrouter", concurrency_limit=1)
    try:
        mapped()
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[ran["id"]]))
            found = client.read_task_runs(flow_run_filter=wanted)
    finally:
        with stage.client() as client:
            client.delete_concurrency_limit_by_tag("batchrouter")

    times = sorted((each.start_time, each.end_time) for each in found)
    assert len(times) == 4
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times)), times
