"""The demo as a new user meets it, and its commands afterwards: real processes, a real router."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from batchrouter.testing import RunningRouter, running_router

BATCHROUTER = str(Path(sys.executable).with_name("batchrouter"))
TICKETS = 72

# One folder and one router serve the module; the tests tell its story in order.
pytestmark = pytest.mark.xdist_group("cli_demo")


def cli(
    folder: Path, *arguments: str, router: RunningRouter | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BATCHROUTER_")}
    if router is not None:
        kept |= {
            "BATCHROUTER_BASE_URL": router.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            "BATCHROUTER_POLL_INTERVAL_S": "0.2",
        }
    return subprocess.run(
        [BATCHROUTER, *arguments],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo")
    told = cli(root, "demo")
    assert told.returncode == 0, told.stderr
    return root / "batchrouter-demo", told.stdout


@pytest.fixture(scope="module")
def router(demo: tuple[Path, str]):
    with running_router(demo[0] / "router") as router:
        yield router


@pytest.fixture
def folder(demo: tuple[Path, str]) -> Path:
    return demo[0]


def rows_of(folder: Path, table: str, run_key: str) -> list[dict]:
    rows = ds.dataset(folder / table, format="parquet").to_table().to_pylist()
    return [row for row in rows if row["_run_key"] == run_key]


def test_the_demo_tells_the_whole_story(demo) -> None:
    _, told = demo

    for part in (
        "name: label-tickets",
        "Quote  72 items for at most $0.00",
        "simulated-openai",
        "cheapest lane that meets",
        "Landed  72 rows in labelled/",
        "72 = 72 succeeded",
        "ticket_id",
        "Nothing was bought again.",
        "batchrouter run job.yaml --run-key monday",
    ):
        assert part in told


def test_the_demo_leaves_a_typed_table_with_every_ticket(folder) -> None:
    lines = (folder / "tickets.jsonl").read_text("utf-8").splitlines()
    tickets = [json.loads(line) for line in lines]
    rows = rows_of(folder, "labelled", "demo-1")

    assert {row["ticket_id"] for row in rows} == {ticket["ticket_id"] for ticket in tickets}
    assert len(rows) == len(tickets) == TICKETS
    assert {type(row["urgent"]) for row in rows} == {bool}
    expected = {ticket["ticket_id"]: ticket["expected_intent"] for ticket in tickets}
    right = sum(row["intent"] == expected[row["ticket_id"]] for row in rows)
    assert right > TICKETS * 0.7, "the demo should read sensibly"


def test_the_printed_query_works(demo) -> None:
    folder, told = demo
    command = next(line for line in told.splitlines() if line.startswith("python -c"))

    done = subprocess.run(
        command.replace("python", sys.executable, 1),
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "refund_request" in done.stdout


def test_doctor_finds_nothing_to_mend(folder, router) -> None:
    told = cli(folder, "doctor", "--json", router=router)

    assert told.returncode == 0, told.stdout
    found = {each["subject"]: each for each in json.loads(told.stdout)["findings"]}
    assert found["key"]["told"] == "valid for read, quote, submit and cancel"
    assert found["runs"]["level"] == found["clock"]["level"] == "ok"


def test_quote_says_lanes_and_price_and_buys_nothing(folder, router) -> None:
    before = json.loads(cli(folder, "batches", "list", "--json", router=router).stdout)["data"]

    told = json.loads(cli(folder, "quote", "job.yaml", "--json", router=router).stdout)

    after = json.loads(cli(folder, "batches", "list", "--json", router=router).stdout)["data"]
    assert told["item_count"] == TICKETS
    assert told["fits"] is True
    assert [lane["provider"] for lane in told["lanes"]] == ["simulated-openai"]
    assert len(after) == len(before)


def test_run_lands_and_the_same_command_buys_nothing_again(folder, router) -> None:
    first = cli(folder, "run", "job.yaml", "--run-key", "monday", "--json", router=router)
    again = cli(folder, "run", "job.yaml", "--run-key", "monday", "--json", router=router)

    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    receipt = json.loads(first.stdout)
    assert receipt["rows"]["succeeded"] == receipt["row_count"] == TICKETS
    assert json.loads(again.stdout) == receipt
    assert "wrote the table: 72 rows" in first.stderr
    assert len(rows_of(folder, "labelled", "monday")) == TICKETS


def test_the_workflow_job_runs_too(folder, router) -> None:
    done = cli(folder, "run", "workflow.yaml", "--run-key", "monday", "--json", router=router)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["succeeded"] == TICKETS
    assert len(rows_of(folder, "classified", "monday")) == TICKETS


def test_a_trial_of_a_few_rows_stays_out_of_the_table(folder, router) -> None:
    before = len(ds.dataset(folder / "labelled", format="parquet").to_table())

    done = cli(folder, "run", "job.yaml", "--run-key", "t", "--limit", "5", router=router)

    assert done.returncode == 0, done.stderr
    assert "Landed  5 rows in runs/" in done.stdout
    assert len(ds.dataset(folder / "labelled", format="parquet").to_table()) == before


def test_a_dry_run_quotes_and_buys_nothing(folder, router) -> None:
    done = cli(folder, "run", "job.yaml", "--run-key", "dry", "--dry-run", "--json", router=router)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quote"]["item_count"] == TICKETS
    shown = json.loads(cli(folder, "runs", "show", "dry", "--json").stdout)
    assert shown["batch_ids"] == []
    assert "bought" not in [event["fact"]["type"] for event in shown["history"]]


def test_a_budget_too_small_is_code_4_and_buys_nothing(folder, router) -> None:
    text = (folder / "job.yaml").read_text("utf-8").replace("0.05  ", "0.0001")
    (folder / "poor.yaml").write_text(text.replace("label-tickets", "poor"), "utf-8")

    done = cli(folder, "run", "poor.yaml", "--run-key", "1", router=router)

    assert done.returncode == 4
    assert "0.0001" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_prompt_under_a_bought_key_is_code_8(folder, router) -> None:
    text = (folder / "job.yaml").read_text("utf-8").replace("fits best", "fits worst")
    (folder / "other.yaml").write_text(text, "utf-8")

    done = cli(folder, "run", "other.yaml", "--run-key", "demo-1", router=router)

    assert done.returncode == 8
    assert "request" in done.stderr
    assert "--rebuy" in done.stderr


def test_runs_need_no_router(folder, router) -> None:
    listed = json.loads(cli(folder, "runs", "list", "--json").stdout)
    shown = cli(folder, "runs", "show", "demo-1")

    assert {"demo-1"} <= {status["run_key"] for status in listed if status["stage"] == "landed"}
    assert shown.returncode == 0, shown.stderr
    assert "landed" in shown.stdout
    assert "batch_" in shown.stdout


def test_landing_again_needs_no_purchase_and_changes_nothing(folder, router) -> None:
    before = rows_of(folder, "labelled", "demo-1")

    again = cli(folder, "land", "job.yaml", "--run-key", "demo-1", "--again", router=router)

    assert again.returncode == 0, again.stderr
    assert rows_of(folder, "labelled", "demo-1") == before


def test_cancelling_what_is_landed_does_nothing(folder, router) -> None:
    done = cli(folder, "cancel", "job.yaml", "--run-key", "demo-1", "--json", router=router)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cancelled"] is False


def test_a_batch_is_shown_with_its_lanes(folder, router) -> None:
    page = json.loads(cli(folder, "batches", "list", "--json", router=router).stdout)
    batch_id = page["data"][0]["id"]

    shown = cli(folder, "batches", "show", batch_id, router=router)
    refused = cli(folder, "batches", "cancel", batch_id, router=router)

    assert shown.returncode == 0, shown.stderr
    assert "simulated-openai" in shown.stdout
    assert refused.returncode == 5
    assert "batch_not_cancellable" in refused.stderr


def test_keys_are_made_listed_and_revoked_while_the_router_runs(folder, router) -> None:
    data = str(folder / "router")
    made = cli(folder, "keys", "create", "--data", data, "--scopes", "read,quote", "--label", "ann")
    key = made.stdout.strip()

    limited = cli(folder, "doctor", "--json", router=router, BATCHROUTER_API_KEY=key)
    told = {each["subject"]: each for each in json.loads(limited.stdout)["findings"]}["key"]
    assert (told["level"], limited.returncode) == ("fail", 5)
    assert "submit, cancel" in told["told"]

    listed = json.loads(cli(folder, "keys", "list", "--data", data, "--json").stdout)
    [mine] = [each for each in listed if each["label"] == "ann"]
    assert mine["scopes"] == "quote,read"
    assert key not in json.dumps(listed)

    assert cli(folder, "keys", "revoke", mine["id"], "--data", data).returncode == 0
    refused = cli(folder, "batches", "list", router=router, BATCHROUTER_API_KEY=key)
    assert refused.returncode == 5
    assert "batchrouter doctor" in refused.stderr
    assert cli(folder, "keys", "revoke", mine["id"], "--data", data).returncode == 2


def test_the_demo_once_more_is_a_new_run_and_keeps_the_job_of_the_user(folder, router) -> None:
    router.stop()  # the demo's own router wants the folder
    text = (folder / "job.yaml").read_text("utf-8") + "# mine\n"
    (folder / "job.yaml").write_text(text, "utf-8")

    again = cli(folder.parent, "demo")

    router.start()
    assert again.returncode == 0, again.stderr
    assert "# mine" in again.stdout
    assert len(rows_of(folder, "labelled", "demo-2")) == TICKETS


def test_the_demo_says_where_it_cannot_write(tmp_path) -> None:
    (tmp_path / "file").write_text("", "utf-8")

    done = cli(tmp_path, "demo", "--dir", "file/inside")

    assert done.returncode == 2
    assert "--dir" in done.stderr
    assert "Traceback" not in done.stderr
