"""What can go wrong with a flow run, on a real Prefect server: kills, races, cancels, restarts.

Each time: one batch, or the right cancel; one row a key; the flow run in the right final state.
"""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.automations import Automation
from prefect.states import Scheduled
from prefect_batchrouter import (
    BatchrouterCredentials,
    BatchrouterJob,
    save_automation,
    set_up_caretakers,
    wake_automation,
)
from prefect_batchrouter.caretakers import CANCEL_AUTOMATION
from prefect_batchrouter.suspending import WAITING_TAG

from batchrouter import Client
from batchrouter.testing import FaultProxy, RunningRouter
from on_prefect.actors import DEPLOYMENT, SECRET, save_account, start_receiver
from on_prefect.scene import (
    BANKING77,
    batches_of_run,
    check_landed,
    job_of,
    landed,
    slow_job,
)
from on_prefect.stage import POOL, Stage, until

EXAMPLES = Path(__file__).parents[2] / "examples" / "prefect"

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("stage"), pytest.mark.usefixtures("whole")]


@pytest.fixture(scope="module")
def whole(stage: Stage, accounts: RunningRouter) -> None:
    """With sweeper, janitor and automation; the sweeper looks at the account without webhooks."""
    set_up_caretakers(POOL, "silent", sweep_every=timedelta(days=1))


def one_batch(router: RunningRouter, flow_run_id: UUID) -> Any:
    found = batches_of_run(router, str(flow_run_id))
    assert len(found) == 1, [each.id for each in found]
    return found[0]


def bought(router: RunningRouter, flow_run_id: UUID) -> Any:
    return until(lambda: next(iter(batches_of_run(router, str(flow_run_id))), None), "the purchase")


def becomes(router: RunningRouter, batch_id: str, *states: str) -> None:
    def look() -> bool:
        with Client(router.settings()) as client:
            return client.retrieve_batch(batch_id).state in states

    until(look, f"batch {batch_id} {' or '.join(states)}")


def run_again(stage: Stage, flow_run_id: UUID) -> None:
    """What `prefect flow-run retry` does, without waiting for a place in the queue."""
    with stage.client() as client:
        client.set_flow_run_state(flow_run_id, Scheduled(name="AwaitingRetry"), force=True)


def cancel(stage: Stage, flow_run_id: UUID) -> None:
    stage.run("prefect", "flow-run", "cancel", str(flow_run_id))


def resume(stage: Stage, flow_run_id: UUID, run_input: dict[str, Any] | None = None) -> str:
    """The call of the UI's button; once more where SQLite was busy."""
    url = f"{stage.api_url}/flow_runs/{flow_run_id}/resume"

    def answer() -> str | None:
        found = httpx.post(url, json={"run_input": run_input}, timeout=30)
        return None if found.status_code >= 500 else found.json()["status"]

    return until(answer, "an answer to the resume call")


def test_killed_after_its_purchase_and_run_again(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent", wait="poll")
    bought(accounts, flow_run_id)

    for pid in stage.pids_of(flow_run_id):
        os.kill(pid, signal.SIGKILL)
    until(lambda: stage.flow_run(flow_run_id).state_name == "Crashed", "the crash")
    until(lambda: not stage.pids_of(flow_run_id), "the end of all its processes")
    time.sleep(10)  # the runner reports the crash, and the worker once more some seconds later
    run_again(stage, flow_run_id)
    until(lambda: stage.flow_run(flow_run_id).state_name == "Completed", "the second attempt")
    done = stage.flow_run(flow_run_id)

    check_landed(job)
    assert done.run_count == 2
    one_batch(accounts, flow_run_id)


def test_a_resume_too_many_and_a_cancel_while_it_sleeps(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path, "long")
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")

    assert resume(stage, flow_run_id) == "ACCEPT"
    until(lambda: stage.count(flow_run_id, "Suspended") == 2, "the second sleep")
    batch = one_batch(accounts, flow_run_id)
    assert batch.state not in {"cancelled", "succeeded"}
    cancel(stage, flow_run_id)

    stage.wait_for(flow_run_id, "Cancelled")
    becomes(accounts, batch.id, "cancelling", "cancelled")
    assert not Path(job["sink"]).exists()


def test_a_sweep_finds_what_no_automation_told_of(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path, "long")
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    batch = one_batch(accounts, flow_run_id)
    automation = Automation.read(name=CANCEL_AUTOMATION)
    automation.enabled = False
    automation.update()

    cancel(stage, flow_run_id)
    stage.wait_for(flow_run_id, "Cancelled")
    stage.start_run("sweep-suspended-runs/batchrouter", credentials="hooked")
    becomes(accounts, batch.id, "cancelling", "cancelled")

    automation.enabled = True
    automation.update()
    until(lambda: WAITING_TAG not in stage.flow_run(flow_run_id).tags, "the end of its waiting")


def test_cancelled_while_it_runs(stage: Stage, accounts: RunningRouter, tmp_path: Path) -> None:
    job = slow_job(tmp_path, "long")
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent", wait="poll")
    batch = bought(accounts, flow_run_id)

    cancel(stage, flow_run_id)

    stage.wait_for(flow_run_id, "Cancelled")
    becomes(accounts, batch.id, "cancelling", "cancelled")
    assert not Path(job["sink"]).exists()


def test_cancelled_while_it_lands_and_run_again(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)
    passed = tmp_path / "passed"
    env = {"BATCHROUTER_STOP_AT": "landing.before_commit", "BATCHROUTER_KILL_LOG": str(passed)}
    with stage.client() as client:
        found = client.read_deployment_by_name(DEPLOYMENT)
        flow_run_id = client.create_flow_run_from_deployment(
            found.id,
            parameters={"job": job, "credentials": "silent", "wait": "poll"},
            job_variables={"env": env},
        ).id
    until(lambda: passed.exists() and "landing.before_commit" in passed.read_text(), "the landing")

    cancel(stage, flow_run_id)
    stage.wait_for(flow_run_id, "Cancelled")
    assert not list(Path(job["sink"]).rglob("*.parquet"))
    for pid in stage.pids_of(flow_run_id):  # what the cancelling could not end while it was stopped
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    soon = datetime.now(UTC) + timedelta(seconds=20)
    with stage.client() as client:
        again = Scheduled(name="AwaitingRetry", scheduled_time=soon)
        client.set_flow_run_state(flow_run_id, again, force=True)
        # Prefect lets them be changed only between the schedule and the start.
        client.update_flow_run(flow_run_id, job_variables={"env": {}})
    until(lambda: stage.flow_run(flow_run_id).state_name == "Completed", "the second attempt")

    check_landed(job)
    one_batch(accounts, flow_run_id)


def test_resumed_by_the_uis_call(stage: Stage, accounts: RunningRouter, tmp_path: Path) -> None:
    job = slow_job(tmp_path)
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    becomes(accounts, one_batch(accounts, flow_run_id).id, "succeeded")

    assert resume(stage, flow_run_id) == "ACCEPT"
    assert resume(stage, flow_run_id) == "ABORT"
    stage.wait_for(flow_run_id, "Completed")

    check_landed(job)


def test_resumed_by_an_automation(stage: Stage, accounts: RunningRouter, tmp_path: Path) -> None:
    actor, hook = start_receiver(stage, "events-only", "--events-only")
    save_automation(wake_automation())
    where = (stage, accounts.base_url, accounts.api_key)
    save_account("told", *where, webhook_url=hook, webhook_secret=SECRET)
    job = slow_job(tmp_path)

    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="told", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    stage.wait_for(flow_run_id, "Completed")
    actor.end()

    check_landed(job)
    one_batch(accounts, flow_run_id)


def test_two_webhooks_at_once_and_the_sweeper_beside_them(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    actor, hook = start_receiver(stage, "second")
    with FaultProxy(hook.removesuffix("/hook")) as proxy:
        proxy.duplicate("POST", "/hook", times=10)
        where = (stage, accounts.base_url, accounts.api_key)
        save_account("twice", *where, webhook_url=f"{proxy.base_url}/hook", webhook_secret=SECRET)
        job = slow_job(tmp_path)
        flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="twice", wait="suspend")
        stage.wait_for(flow_run_id, "Suspended")
        batch = one_batch(accounts, flow_run_id)
        becomes(accounts, batch.id, "succeeded")
        stage.start_run("sweep-suspended-runs/batchrouter", credentials="twice")
        done = stage.wait_for(flow_run_id, "Completed")
        assert any(each.fault == "duplicate" for each in proxy.seen)
    actor.end()

    check_landed(job)
    assert stage.count(flow_run_id, "Resuming") == 1
    assert done.run_count == 1
    one_batch(accounts, flow_run_id)


def test_the_prefect_server_restarted_while_it_sleeps(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="hooked", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    batch = one_batch(accounts, flow_run_id)

    stage.server.end()
    becomes(accounts, batch.id, "succeeded")  # and its webhook finds no Prefect
    time.sleep(5)
    stage.start_server()
    stage.wait_for(flow_run_id, "Completed")

    check_landed(job)
    one_batch(accounts, flow_run_id)


def test_the_receiver_killed_after_its_answer(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    actor, hook = start_receiver(stage, "mortal")
    where = (stage, accounts.base_url, accounts.api_key)
    save_account("mortal", *where, webhook_url=hook, webhook_secret=SECRET)
    job = slow_job(tmp_path)
    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="mortal", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    stage.server.end()
    batch_id = bought(accounts, flow_run_id).id
    becomes(accounts, batch_id, "succeeded")
    until(lambda: "Prefect does not answer" in actor.tail(), "the answered webhook")

    actor.end(signal.SIGKILL)
    stage.start_server()
    assert stage.flow_run(flow_run_id).state_name == "Suspended"
    actor.start()
    stage.wait_for(flow_run_id, "Completed")
    actor.end()

    check_landed(job)


def test_the_create_reply_dropped(stage: Stage, accounts: RunningRouter, tmp_path: Path) -> None:
    with FaultProxy(accounts.base_url) as proxy:
        proxy.drop_reply("POST", "/v1/batches")
        save_account("lossy", stage, proxy.base_url, accounts.api_key)
        job = slow_job(tmp_path)
        flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="lossy", wait="poll")
        stage.wait_for(flow_run_id, "Completed")
        assert proxy.count("POST", "/v1/batches") >= 2

    check_landed(job)
    one_batch(accounts, flow_run_id)


def test_a_job_block_from_a_deployment(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)
    block = BatchrouterJob(credentials=BatchrouterCredentials.load("silent"), job=job)
    saved = block.save("from-a-deployment", overwrite=True)

    reference = {"$ref": {"block_document_id": str(saved)}}
    flow_run_id = stage.start_run(DEPLOYMENT, job=reference, wait="poll")
    stage.wait_for(flow_run_id, "Completed")

    check_landed(job)
    with stage.client() as client:
        told = client.read_flow_run(flow_run_id).model_dump_json()
    assert accounts.api_key not in told


def test_the_examples_deployed_and_a_price_approved(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    plan = folder / "prefect.yaml"
    plan.write_text(plan.read_text("utf-8").replace("name: default", f"name: {POOL}"), "utf-8")
    job = folder / "job.yaml"
    route = "models: [slow]"
    told = job.read_text("utf-8").replace("models: [gpt-4o-mini, claude-haiku-4]", route)
    job.write_text(told.replace("sink: labelled", f"sink: {folder}/labelled"), "utf-8")
    stage.run("prefect", "--no-prompt", "deploy", "--all", cwd=folder, EXAMPLES_DIR=str(folder))

    flow_run_id = stage.start_run(
        "label-tickets-approved/on-demand", credentials="hooked", free_usd=0.0
    )
    stage.wait_for(flow_run_id, "Suspended")
    assert batches_of_run(accounts, "2026-11-22") == []
    assert resume(stage, flow_run_id, {"approved": True}) == "ACCEPT"
    until(lambda: stage.count(flow_run_id, "Suspended") == 2, "the sleep while its batch runs")
    stage.wait_for(flow_run_id, "Completed")

    assert len(batches_of_run(accounts, "2026-11-22")) == 1


@pytest.mark.shared_data
@pytest.mark.parametrize("wait", ["poll", "suspend"])
def test_banking77(stage: Stage, accounts: RunningRouter, tmp_path: Path, wait: str) -> None:
    labels = json.loads((BANKING77 / "categories.json").read_text())
    job = job_of(
        BANKING77 / "train.parquet",
        tmp_path / "labelled",
        labels,
        route={"models": ["slow"]},
    )

    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="hooked", wait=wait)
    stage.wait_for(flow_run_id, "Completed", timeout_s=400)

    check_landed(job)
    assert landed(job).num_rows == 10_003
    assert stage.count(flow_run_id, "Suspended") == (wait == "suspend")
    one_batch(accounts, flow_run_id)


def test_no_secret_is_written_down(stage: Stage, accounts: RunningRouter) -> None:
    """Last of all: nothing that any process of the stage has logged or kept holds the key."""
    for path in stage.folder.rglob("*"):
        if path.is_file() and not path.name.endswith(("-wal", "-shm")):
            assert accounts.api_key.encode() not in path.read_bytes(), path
            assert SECRET.encode() not in path.read_bytes(), path
