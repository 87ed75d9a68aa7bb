"""A proxy lets `POST /v1/batches` through and drops the reply, three times: one batch.

The plain official clients make three paid batches of this.
"""

import shutil
import time
import tomllib
import uuid
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from batchrouter import Job, Receipt, Run, Settings
from batchrouter.errors import RunIdentityConflictError, TransportError
from batchrouter.testing import FaultProxy, RunningRouter, running_router
from crash.scenario import ROWS, Scenario, batches_of

QUOTE_LIVES_S = 2


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    data_dir = tmp_path_factory.mktemp("router")
    builtin = files("batchrouter.server").joinpath("default_router.toml").read_text()
    config = {**tomllib.loads(builtin), "limits": {"quote_s": QUOTE_LIVES_S}}
    with running_router(data_dir, config=config) as running:
        yield running


@pytest.fixture
def scenario(router: RunningRouter, tmp_path: Path) -> Scenario:
    return Scenario(tmp_path, router.base_url, router.api_key, run_key=uuid.uuid4().hex)


def open_run(scenario: Scenario, base_url: str) -> Run:
    settings = Settings(
        base_url=base_url,
        api_key=scenario.api_key,
        runs_url=str(scenario.runs_path),
        namespace="crash-tests",
        max_attempts=3,
        retry_wait_s=0.01,
    )
    return Run.open(Job.from_file(scenario.job_path), run_key=scenario.run_key, settings=settings)


def submit(scenario: Scenario, base_url: str) -> None:
    with open_run(scenario, base_url) as run:
        run.submit()


def execute(scenario: Scenario, base_url: str) -> Receipt:
    with open_run(scenario, base_url) as run:
        return run.execute(timeout_s=60)


@pytest.mark.parametrize("folder_lost", [False, True], ids=["folder kept", "folder lost"])
@pytest.mark.parametrize("expired", [False, True], ids=["quote fresh", "quote expired"])
def test_one_batch_whatever_was_lost(
    scenario: Scenario,
    proxy: FaultProxy,
    router: RunningRouter,
    *,
    expired: bool,
    folder_lost: bool,
) -> None:
    proxy.drop_reply("POST", "/v1/batches", times=3)

    with pytest.raises(TransportError):
        submit(scenario, proxy.base_url)
    assert proxy.count("POST", "/v1/batches") == 3
    if expired:
        time.sleep(QUOTE_LIVES_S + 0.2)
    if folder_lost:
        shutil.rmtree(scenario.runs_path)
    receipt = execute(scenario, proxy.base_url)

    assert len(batches_of(router, scenario.run_key)) == 1
    assert receipt.batch_count == 1
    assert receipt.rows["succeeded"] == ROWS
    assert len(scenario.table()) == ROWS


def test_a_run_waits_out_the_lost_replies_by_itself(
    scenario: Scenario, proxy: FaultProxy, router: RunningRouter
) -> None:
    proxy.drop_reply("POST", "/v1/batches", times=3)

    execute(scenario, proxy.base_url)

    assert len(batches_of(router, scenario.run_key)) == 1


def test_a_request_that_never_arrived_is_bought_with_a_fresh_quote(
    scenario: Scenario, proxy: FaultProxy, router: RunningRouter
) -> None:
    proxy.answer("POST", "/v1/batches", status=503, times=3)

    with pytest.raises(Exception, match="503"):
        submit(scenario, proxy.base_url)
    time.sleep(QUOTE_LIVES_S + 0.2)
    receipt = execute(scenario, proxy.base_url)

    assert len(batches_of(router, scenario.run_key)) == 1
    assert receipt.rows["succeeded"] == ROWS


def test_a_lost_folder_and_a_changed_source_buy_nothing_more(
    scenario: Scenario, proxy: FaultProxy, router: RunningRouter
) -> None:
    execute(scenario, router.base_url)
    shutil.rmtree(scenario.runs_path)
    text = scenario.job_path.read_text()
    scenario.job_path.write_text(text.replace("You label bank queries.", "Label these."))

    with pytest.raises(RunIdentityConflictError, match="manifest_sha256"):
        execute(scenario, router.base_url)

    assert len(batches_of(router, scenario.run_key)) == 1


def test_two_attempts_at_once_buy_once(
    scenario: Scenario, proxy: FaultProxy, router: RunningRouter
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    proxy.delay("POST", "/v1/batches", seconds_s=0.5, times=2)

    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(lambda _: execute(scenario, proxy.base_url), range(4)))

    assert len(batches_of(router, scenario.run_key)) == 1
    assert {receipt.batch_ids for receipt in receipts} == {receipts[0].batch_ids}
    assert len(scenario.table()) == ROWS
