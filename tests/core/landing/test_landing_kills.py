"""SIGKILL at every point of a landing: the table is whole, and landing again heals the rest."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

PROGRAM = """
import sys
from pathlib import Path
import fsspec
from batchrouter.job import Job
from batchrouter.landing.land import LandingIdentity, PartToLand, land_parts
from batchrouter.landing.sinks import open_sink
from batchrouter.landing.sinks import files

files._GROUP_ROWS = 10
root = Path(sys.argv[1])
job = Job.model_validate({
    "name": "label", "source": "x.parquet", "key": "ticket_id", "keep": ["subject"],
    "request": {"kind": "chat", "user": "{subject}"}, "route": {"models": ["m"]},
    "budget": "1.00", "sink": "x",
})
land_parts(
    job,
    fs=fsspec.filesystem("file"),
    parts=[
        PartToLand(
            0, str(root / "rows-0.parquet"), 100, str(root / "artifact-0.jsonl"), "batch_0"
        )
    ],
    sink=open_sink(str(root / "lake" / "tickets")),
    identity=LandingIdentity("label", "2026-11-22", "2026-11-22-0a1b2c"),
    rejects_dir=str(root / "rejects"),
    token="killed",
)
"""

POINTS = {
    "landing.before_write": 0,
    "landing.before_quarantine": 0,
    "landing.after_quarantine": 0,
    "landing.mid_write": 0,
    "landing.before_commit": 0,
    "landing.after_commit": 1,
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_landing_leaves_no_half_table_and_is_healed(
    kit: Any, run_folder: Any, point: str
) -> None:
    root: Path = run_folder.root
    run_folder.add_part(100, [*(kit.native(n) for n in range(99)), b"cut here"])
    earlier = type(run_folder.identity)("label", "earlier", "earlier-aaaa")
    run_folder.land(kit.text_job, identity=earlier)
    table = root / "lake" / "tickets"

    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        env=os.environ | {"BATCHROUTER_KILL_AT": point},
        check=False,
        capture_output=True,
        text=True,
    )

    assert killed.returncode == -9, killed.stderr
    assert len(pq.read_table(table)) == 100 * (1 + POINTS[point])
    again = run_folder.land(kit.text_job)
    assert (again.rows, again.succeeded, again.quarantined) == (100, 99, 1)
    landed = pq.read_table(table)
    assert sorted(landed.column("ticket_id").to_pylist()) == sorted([*range(100), *range(100)])
    assert [each.name for each in table.parent.iterdir()] == ["tickets"]
    run_folder.land(kit.text_job)
    assert pq.read_table(table).equals(landed)
