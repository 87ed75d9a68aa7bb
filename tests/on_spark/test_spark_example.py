"""The example runs as its header says: offline, on a Spark of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "spark" / "label_on_spark.py"

pytestmark = [pytest.mark.xdist_group("spark"), pytest.mark.usefixtures("spark_environment")]


def test_the_tickets_are_labelled_in_three_batches(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if "BATCHROUTER" not in name},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "9 rows labelled in 3 batches" in done.stdout
    assert "9 tickets in the table, each once" in done.stdout
