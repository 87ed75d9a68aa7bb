"""The examples run as they stand: on Prefect's test server, and their deployments are real."""

import importlib.util
import shutil
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pytest

from batchrouter.testing import RunningRouter

EXAMPLES = Path(__file__).parents[2] / "examples" / "prefect"

pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = tmp_path / "prefect"
    shutil.copytree(EXAMPLES, copied)
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def account(credentials: Any) -> str:
    credentials.save("examples", overwrite=True)
    return "examples"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def labelled(folder: Path) -> dict[str, Any]:
    table = ds.dataset(folder / "labelled", format="parquet").to_table()
    return {row["ticket_id"]: row["_status"] for row in table.to_pylist()}


def test_the_whole_job(folder: Path, account: str) -> None:
    receipt = load(folder / "whole_job.py").label_tickets("2026-11-22", account)

    assert receipt["run_key"] == "2026-11-22"
    assert labelled(folder) == dict.fromkeys(["T-1", "T-2", "T-3", "T-4"], "succeeded")


def test_a_price_that_needs_nobody(folder: Path, account: str) -> None:
    flow = load(folder / "approval.py").label_with_approval

    receipt = flow("2026-11-22", account, free_usd=1.0)

    assert receipt["rows"]["succeeded"] == 4


def test_a_price_that_needs_a_person_suspends_before_anything_is_bought(
    folder: Path, account: str, router: RunningRouter
) -> None:
    flow = load(folder / "approval.py").label_with_approval

    # The test server has no deployment of it to come back to; the drills have one.
    with pytest.raises(RuntimeError, match="without a deployment"):
        flow("2026-11-22", account, free_usd=0.0)

    assert not (folder / "labelled").exists()


def test_mapped_days_buy_only_what_is_missing(folder: Path, account: str) -> None:
    flow = load(folder / "days.py").label_days
    second = folder / "tickets" / "day=2026-11-23.csv"
    kept = second.read_text("utf-8")
    second.unlink()

    first_night = flow(account, until=date(2026, 11, 22))
    second.write_text(kept, "utf-8")
    next_night = flow(account, until=date(2026, 11, 23))

    assert {day: rows["succeeded"] for day, rows in first_night.items()} == {"2026-11-22": 4}
    assert {day: rows["succeeded"] for day, rows in next_night.items()} == {
        "2026-11-23": 2,
        "2026-11-22": 4,
    }
    assert sorted(labelled(folder)) == ["T-1", "T-2", "T-3", "T-4", "T-5", "T-6"]


def test_every_night_buys_only_what_is_new(folder: Path, account: str) -> None:
    flow = load(folder / "nightly.py").label_nightly
    second = folder / "tickets" / "day=2026-11-23.csv"
    kept = second.read_text("utf-8")
    second.unlink()

    first_night = flow(account, night="2026-11-22")
    second.write_text(kept, "utf-8")
    next_night = flow(account, night="2026-11-23")

    assert (first_night["row_count"], first_night["unchanged"]) == (4, 0)
    assert (next_night["row_count"], next_night["unchanged"]) == (2, 4)
    with duckdb.connect("labelled.duckdb", read_only=True) as table:
        found = table.execute("SELECT ticket_id FROM tickets ORDER BY 1").fetchall()
    assert [row[0] for row in found] == ["T-1", "T-2", "T-3", "T-4", "T-5", "T-6"]


def test_the_flow_of_the_spark_example_loads() -> None:
    module = load(EXAMPLES.parent / "spark" / "prefect_flow.py")

    assert module.label_tickets_on_spark.name == "label-tickets-on-spark"
    assert Path(module.JOB).is_file()
