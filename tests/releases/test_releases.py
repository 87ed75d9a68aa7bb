"""What earlier versions left behind opens, goes on and ends with this one.

Each world was killed in mid-work, and wakes an hour later by its own clock, whenever this runs.
`freeze.py` made it. A failure here means that a user's run, or a router's accepted batch, would
be lost by upgrading: mend the code, never the archive.
"""

import json
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from batchrouter.errors import TransportError
from batchrouter.testing import RunningRouter, running_router
from batchrouter.webhooks.inbox import open_inbox
from crash.clocks import shifted
from crash.desk import wait_until
from releases.freeze import ROWS, command

ARCHIVES = sorted(Path(__file__).parent.glob("*/*.tar.xz"))
HOUR_S = 3600


@dataclass(frozen=True)
class World:
    root: Path
    router: RunningRouter
    runs: list[dict[str, Any]]
    env: dict[str, str]

    def books(self, query: str) -> list[Any]:
        with sqlite3.connect(self.router.data_dir / "router.db", timeout=30) as conn:
            found = conn.execute(query).fetchall()
        conn.close()
        return found


@pytest.fixture(params=ARCHIVES, ids=lambda path: f"{path.parent.name}/{path.name[:-7]}")
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    told = json.loads((tmp_path / "world.json").read_text())
    env = shifted(f"{told['frozen_at_s'] + HOUR_S - time.time():+.0f}")
    config = json.loads((tmp_path / "router.json").read_text())
    with running_router(tmp_path / "router", config=config, env=env) as router:
        yield World(tmp_path, router, told["runs"], env)


def test_every_version_has_its_worlds() -> None:
    assert {path.parent.name for path in ARCHIVES} >= {"0.1.0"}


def test_each_run_comes_to_its_end(world: World) -> None:
    for run in world.runs:
        key, job = run["run_key"], world.root / f"{run['run_key'].replace(' ', '-')}.json"
        before = len(list(world.root.glob("runs/*/*/journal/000001.json")))

        done = command("run --json", job, key, world.router, **world.env)

        assert done.returncode == 0, (key, done.stderr)
        check_table(world, job, json.loads(done.stdout))
        assert len(list(world.root.glob("runs/*/*/journal/000001.json"))) == before, key
    check_books(world)


def check_table(world: World, job: Path, receipt: dict[str, Any]) -> None:
    table = ds.dataset(world.root / f"{job.stem}-table", format="parquet").to_table()
    assert receipt["rows"]["succeeded"] == receipt["row_count"] == ROWS, job.stem
    assert sorted(table["id"].to_pylist()) == list(range(ROWS))
    assert set(table["_status"].to_pylist()) == {"succeeded"}


def check_books(world: World) -> None:
    """All that was accepted has ended, bought once, at no more than its quote."""
    wait_until(lambda: world.books("select 1 from batches where completed_at is null") == [])
    bought = world.books("select count(*) from batches")[0][0]
    assert bought == sum(run["batches"] for run in world.runs)
    [(balance, reserved, spent)] = world.books(
        "select balance_micro, reserved_micro, spent_micro from workspaces"
    )
    [(charged, most)] = world.books(
        "select sum(charged_micro), sum(quoted_total_micro) from batches"
    )
    assert reserved == 0
    assert spent == charged <= most
    assert balance + spent == 1000 * 10**6


def test_a_router_of_a_later_version_is_not_opened(tmp_path: Path) -> None:
    with running_router(tmp_path) as router:
        database = router.data_dir / "router.db"
    with sqlite3.connect(database) as conn:
        conn.execute("update schema_version set version = 99")
    conn.close()

    with pytest.raises(TransportError, match="install the router that wrote it"):
        RunningRouter(tmp_path, options=(), log_path=tmp_path / "router.log").start()


def test_what_was_landed_is_landed_again_without_its_router(world: World) -> None:
    landed = [run["run_key"] for run in world.runs if run["run_key"] == "landed"]
    if not landed:
        pytest.skip("no run of this world was landed")
    table = world.root / "landed-table"
    before = ds.dataset(table, format="parquet").to_table()
    shutil.rmtree(table)
    world.router.kill()

    done = command("land --again", world.root / "landed.json", "landed", world.router, **world.env)

    assert done.returncode == 0, done.stderr
    assert ds.dataset(table, format="parquet").to_table().equals(before)


def test_the_inbox_is_read_and_written_further(world: World) -> None:
    inbox = open_inbox(f"sqlite:///{world.root / 'inbox.db'}")

    events, cursor = inbox.events_since(None)

    assert [event.id for event in events] == ["evt_0", "evt_1", "evt_2"]
    assert not inbox.put(events[0])
    assert inbox.events_since(cursor)[0] == []
