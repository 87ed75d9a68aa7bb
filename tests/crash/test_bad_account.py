"""An account, a router or a purchase that says no: told by name, nothing bought twice, mended."""

import json
import socket
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest

from batchrouter.testing import FaultProxy, RunningRouter, running_router
from crash.mistake import (
    NO_ANSWER,
    OTHER_PURCHASE,
    REFUSED,
    ROWS,
    TOO_DEAR,
    WRONG_COMMAND,
    Mistake,
    mistake,
)
from crash.scenario import BATCHROUTER, SIGKILLED

QUOTE_LIVES_S = 2


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    builtin = files("batchrouter.server").joinpath("default_router.toml").read_text()
    config = {
        **tomllib.loads(builtin),
        "limits": {"quote_s": QUOTE_LIVES_S},
        "credits": {"initial_usd": "20"},
    }
    with running_router(tmp_path_factory.mktemp("router"), config=config) as running:
        yield running


@pytest.fixture
def bad(router: RunningRouter, proxy: FaultProxy, tmp_path: Path) -> Mistake:
    return mistake(tmp_path, router, proxy.base_url)


SCOPES = ("quote", "submit", "read", "cancel")


def keys(router: RunningRouter, *arguments: str) -> str:
    """What an operator types."""
    command = [*BATCHROUTER, "keys", *arguments, "--data", str(router.data_dir)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def revoke(router: RunningRouter, label: str) -> None:
    known = json.loads(keys(router, "list", "--json"))
    keys(router, "revoke", next(each["id"] for each in known if each["label"] == label))


def test_a_budget_too_small_uploads_nothing(bad: Mistake, proxy: FaultProxy) -> None:
    bad.job["budget"] = "0.000001"

    bad.fails(TOO_DEAR, f"{ROWS} items", "above the budget of 0.000001 USD", "Raise `budget`")
    assert proxy.count("POST", "/v1/batches/input-manifests") == 0

    bad.job["budget"] = 5
    bad.succeeds()


def test_the_settings_budget_holds_against_any_job(bad: Mistake, proxy: FaultProxy) -> None:
    bad.job["budget"] = "none"

    bad.fails(TOO_DEAR, "0.000002 USD", "max_run_usd", BATCHROUTER_MAX_RUN_USD="0.000002")
    assert proxy.count("POST", "/v1/batches/input-manifests") == 0


def test_a_quote_that_expires_on_the_way_is_asked_for_again(
    bad: Mistake, proxy: FaultProxy
) -> None:
    proxy.delay("POST", "/v1/quotes/model", seconds_s=QUOTE_LIVES_S + 0.3, nth=2)

    assert bad.succeeds()["rows"]["succeeded"] == ROWS
    assert proxy.count("POST", "/v1/quotes/model") >= 3


def test_a_host_that_does_not_answer(bad: Mistake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    here, bad.base_url = bad.base_url, f"http://127.0.0.1:{port}"

    bad.fails(NO_ANSWER, f"127.0.0.1:{port}", "BATCHROUTER_BASE_URL", "doctor")
    bad.fails(NO_ANSWER, f"127.0.0.1:{port}", "BATCHROUTER_BASE_URL", command="quote")

    bad.base_url = here
    bad.succeeds()


def test_a_host_that_is_no_router(bad: Mistake, proxy: FaultProxy) -> None:
    proxy.answer("POST", "/v1/quotes/model", status=200, body=b"<html>Welcome to nginx</html>")

    bad.fails(NO_ANSWER, "is not JSON", "BATCHROUTER_BASE_URL")
    bad.succeeds()


def test_a_key_that_is_unknown(bad: Mistake) -> None:
    key = "bk_live_" + "0" * 43

    told = bad.fails(REFUSED, "unauthorized", "BATCHROUTER_API_KEY", BATCHROUTER_API_KEY=key)

    assert key not in told


@pytest.mark.parametrize("key", ["", "two words"])
def test_a_key_that_can_be_none(bad: Mistake, key: str) -> None:
    told = bad.fails(WRONG_COMMAND, "BATCHROUTER_API_KEY", BATCHROUTER_API_KEY=key)

    assert "two words" not in told


def test_a_key_without_the_scope_to_submit(bad: Mistake, router: RunningRouter) -> None:
    key = router.mint_key(["quote", "read"])

    told = bad.fails(REFUSED, "insufficient_scope", "submit", "scopes", BATCHROUTER_API_KEY=key)

    assert key not in told
    bad.succeeds()


def test_a_key_revoked_before_the_start(bad: Mistake, router: RunningRouter) -> None:
    key = router.mint_key(SCOPES, label=bad.run_key)
    revoke(router, bad.run_key)

    told = bad.fails(REFUSED, "unauthorized", "BATCHROUTER_API_KEY", BATCHROUTER_API_KEY=key)

    assert key not in told


def test_a_key_revoked_once_the_batch_is_bought(bad: Mistake, router: RunningRouter) -> None:
    key = router.mint_key(SCOPES, label=bad.run_key)
    killed = bad.cli("run", BATCHROUTER_API_KEY=key, BATCHROUTER_KILL_AT="journal.after_bought")
    assert killed.returncode == SIGKILLED, killed.stderr
    revoke(router, bad.run_key)

    told = bad.fails(REFUSED, "unauthorized", "API_KEY", bought=1, BATCHROUTER_API_KEY=key)

    assert key not in told
    bad.succeeds()


def test_a_workspace_out_of_credits(bad: Mistake, router: RunningRouter) -> None:
    bad.job["budget"] = 100
    bad.job["request"]["parameters"]["max_output_tokens"] = 10_000_000

    bad.fails(TOO_DEAR, "insufficient_credits", "Nothing was bought", "Add credits")

    with closing(sqlite3.connect(router.data_dir / "router.db")) as database, database:
        database.execute("UPDATE workspaces SET balance_micro = balance_micro + 1000000000")
    bad.succeeds()


def test_a_workflow_that_is_not_there(bad: Mistake) -> None:
    bad.job["route"] = {"workflow": "classify-support-tickets@v9"}
    bad.job["request"] = {"kind": "workflow", "input": {"body": "{text}"}}

    bad.fails(REFUSED, "workflow_not_found", "classify-support-tickets@v9")

    bad.job["route"] = {"workflow": "classify-support-tickets@v3"}
    bad.succeeds()


def test_a_model_that_is_not_there(bad: Mistake) -> None:
    bad.job["route"] = {"models": ["gpt-4o-mimi"]}

    bad.fails(REFUSED, "model_not_found", "gpt-4o-mimi")
    bad.fails(REFUSED, "model_not_found", "gpt-4o-mimi", command="quote")

    bad.job["route"] = {"models": ["gpt-4o-mini"]}
    bad.succeeds()


def test_a_region_without_a_lane_says_which_lanes_were_rejected_and_why(bad: Mistake) -> None:
    bad.job["route"]["allowed_regions"] = ["mars"]

    bad.fails(REFUSED, "no_eligible_lane", "openai processes data in global; allowed: mars")

    bad.job["route"]["allowed_regions"] = ["us"]
    bad.succeeds()


def test_a_job_that_changed_under_a_bought_run_key(bad: Mistake) -> None:
    bad.succeeds()
    bad.job["request"]["system"] = "You label them all."

    bad.fails(OTHER_PURCHASE, repr(bad.run_key), "another request", "--rebuy", bought=1)

    bad.job["request"]["system"] = "You label bank queries."
    bad.job["budget"] = 7
    bad.succeeds()


def test_a_job_may_change_while_nothing_is_bought(bad: Mistake) -> None:
    assert bad.cli("run", "--dry-run").returncode == 0
    bad.job["request"]["system"] = "You label them all."

    bad.succeeds()


def test_a_wait_that_takes_too_long_goes_on_later(bad: Mistake, proxy: FaultProxy) -> None:
    proxy.delay("GET", "/v1/batches*", seconds_s=1.0)

    bad.fails(11, "still waiting", "same run key", options=("--timeout", "0.001"), bought=1)
    time.sleep(0.2)

    bad.succeeds()
