"""The example project runs offline as its README says."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "dagster"
LEFT = ("router", "runs", "tickets_labelled", "complaints", "__pycache__")


@pytest.mark.timeout(300)
def test_a_day_is_labelled_and_reported_and_bought_once(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("router", "runs"))
    kept = {name: value for name, value in os.environ.items() if "BATCHROUTER" not in name}

    done = subprocess.run(
        [sys.executable, "try_offline.py", "2026-11-02"],
        cwd=project,
        env={**kept, "PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "tickets_labelled $0.0000" in done.stdout
    rows = ds.dataset(project / "data/tickets_labelled", format="parquet").to_table().to_pylist()
    assert {row["ticket_id"] for row in rows} == {"T-201", "T-202", "T-203", "T-204"}


def test_the_assets_of_the_spark_example_load() -> None:
    loaded = runpy.run_path(str(EXAMPLE.parent / "spark" / "dagster_definitions.py"))

    graph = loaded["defs"].resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "labelled_tickets",
        "labelled_tickets_submission",
    }


def test_it_leaves_nothing_that_git_would_see() -> None:
    ignored = (EXAMPLE.parent / ".gitignore").read_text("utf-8")

    for name in ("router", "data/runs", "data/tickets_labelled", "data/complaints"):
        assert f"/dagster/{name}/" in ignored
