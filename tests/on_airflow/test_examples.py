"""The example DAGs as they stand in examples/airflow: they import, and a real Airflow runs them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from batchrouter.testing import running_router
from on_airflow.airflow_processes import Airflow, connection

EXAMPLES = Path(__file__).parents[2] / "examples" / "airflow"
PARSED = [*sorted(EXAMPLES.glob("*.py")), EXAMPLES.parent / "spark" / "airflow_dag.py"]


@pytest.mark.parametrize("path", PARSED, ids=lambda path: path.stem)
def test_an_example_is_parsed_without_network(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3_000:]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    root = tmp_path_factory.mktemp("examples")
    with running_router(root / "router") as router:
        extra = {"runs_url": str(root / "runs"), "poll_interval_s": "1"}
        started = Airflow(
            root / "home",
            connection(host=router.base_url, password=router.api_key, extra=extra),
        )
        shutil.copytree(EXAMPLES, started.home / "dags", dirs_exist_ok=True)
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.mark.drill
@pytest.mark.timeout(1500)
def test_the_examples_run_on_a_real_airflow(airflow: Airflow) -> None:
    nightly = airflow.trigger("nightly_labels", logical_date="2026-11-21T00:00:00Z")
    airflow.wait_for_run("nightly_labels", nightly, timeout_s=240)
    approved = airflow.trigger("approve_by_price")
    airflow.wait_for_run("approve_by_price", approved)
    refused = airflow.trigger("approve_by_price", {"most_usd": "0.0000001", "day": "2026-11-21"})
    airflow.wait_for_run("approve_by_price", refused)
    bought = airflow.trigger("buy_labels")
    airflow.wait_for_run("buy_labels", bought)
    airflow.wait_until(
        lambda: [each["state"] for each in airflow.runs("land_labels")].count("success"),
        120,
        "the DAG that lands",
    )

    assert airflow.state("approve_by_price", refused, "submit") == "skipped"
    receipt = airflow.xcom("nightly_labels", nightly, "label")
    assert sum(receipt["rows"].values()) == 5
    landed = ds.dataset(airflow.home / "dags" / "labelled", format="parquet").to_table()
    keys = set(landed.column("_run_key").to_pylist())
    assert {f"nightly_labels/label/{nightly}", f"approve_by_price/{approved}", "2026-11-22"} <= keys
