"""Every example runs as its header says: offline, in a process of its own, from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if "BATCHROUTER" not in name},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_label_tickets_lands_every_ticket_and_sends_none_without_a_body(tmp_path: Path) -> None:
    copied = tmp_path / "label_tickets"
    shutil.copytree(
        EXAMPLES / "label_tickets",
        copied,
        ignore=shutil.ignore_patterns("router", "runs", "labelled"),
    )

    told = run(copied / "run.py", tmp_path)

    assert "ok  label-tickets: the job and its source fit each other" in told
    assert "10 = 9 succeeded + 1 skipped" in told
    rows = {row["ticket_id"]: row for row in ds.dataset(copied / "labelled").to_table().to_pylist()}
    assert rows["T-1"]["intent"] == "billing"
    assert rows["T-3"]["intent"] == "delivery"
    assert isinstance(rows["T-3"]["urgent"], bool)
    assert rows["T-10"]["_status"] == "skipped"
    assert rows["T-10"]["intent"] is None


def test_label_tickets_leaves_nothing_that_git_would_see() -> None:
    ignored = (EXAMPLES / ".gitignore").read_text("utf-8")

    assert all(f"/label_tickets/{name}/" in ignored for name in ("labelled", "router", "runs"))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "python_api.py",
            [
                "quote: 4 items for at most 0.0001",
                "why: gpt-4o-mini on simulated-openai",
                "rows: {'succeeded': 4, 'failed': 0, ",
                "bought twice: False",
                "{'review_id': 1, 'stars': 5, 'topic': 'food', 'recommends': ",
                "{'review_id': 2, 'stars': 2, 'topic': 'service', 'recommends': ",
            ],
        ),
        (
            "embeddings.py",
            [
                "rows: 4, cost: 0.0000",
                "output: fixed_size_list<element: float>[64]",
                "length of the first: 1.000",
            ],
        ),
        (
            "webhook_only.py",
            [
                "rows: 3",
                "delivered: batch.submitted (queued)",
                "delivered: batch.completed (succeeded)",
            ],
        ),
    ],
)
def test_the_python_examples_say_what_they_did(name: str, lines: list[str], tmp_path: Path) -> None:
    told = run(EXAMPLES / name, tmp_path)

    assert all(any(each.startswith(line) for each in told.splitlines()) for line in lines), told
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_tested() -> None:
    tested = {"label_tickets", "python_api.py", "embeddings.py", "webhook_only.py"}
    # Each has an environment of its own, and its tests there: tests/on_airflow and so on.
    tested |= {"airflow", "dagster", "prefect", "spark"}

    found = {each.name for each in EXAMPLES.iterdir() if not each.name.startswith((".", "_"))}

    assert found == tested
