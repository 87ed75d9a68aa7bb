"""A disk that is full or read-only, and a run folder that lost something: said, mended, gone on.

Disks are tmpfs mounts of a few kilobytes, which only root may make.
"""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.testing import RunningRouter, running_router
from crash.disk import Disk
from crash.mistake import (
    NO_ANSWER,
    NO_RUN_FOLDER,
    NO_TABLE,
    ROWS,
    Mistake,
    mistake,
)
from crash.scenario import SIGKILLED, queries


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def bad(router: RunningRouter, tmp_path: Path) -> Mistake:
    return mistake(tmp_path, router)


def runs_on(disk: Disk, bad: Mistake) -> None:
    bad.env["BATCHROUTER_RUNS_URL"] = str(disk.root / "runs")


def killed_at(bad: Mistake, point: str) -> None:
    killed = bad.cli("run", BATCHROUTER_KILL_AT=point)
    assert killed.returncode == SIGKILLED, killed.stderr


def test_a_disk_that_the_manifest_does_not_fit_on(bad: Mistake, disk: Disk) -> None:
    disk.mount("256k")
    runs_on(disk, bad)
    bad.write(queries(3000))

    bad.fails(NO_RUN_FOLDER, "manifest", "No space left on device")
    left = [path for path in disk.root.rglob("*") if path.is_file() and "journal" not in str(path)]
    assert left == [], "a build that failed keeps nothing"

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_disk_that_is_full_when_the_purchase_is_to_be_written_down(
    bad: Mistake, disk: Disk
) -> None:
    disk.mount("256k")
    runs_on(disk, bad)
    assert bad.cli("run", "--dry-run").returncode == 0
    disk.fill()

    bad.fails(NO_RUN_FOLDER, "journal", "No space left on device", "same run key")

    disk.free()
    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_a_disk_that_the_artifact_does_not_fit_on(bad: Mistake, disk: Disk) -> None:
    disk.mount("256k")
    runs_on(disk, bad)
    killed_at(bad, "download.before")
    disk.fill()

    bad.fails(NO_RUN_FOLDER, "artifact", "No space left on device", bought=1)

    disk.free()
    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_a_disk_that_the_table_does_not_fit_on(bad: Mistake, disk: Disk) -> None:
    disk.mount("64k")
    bad.job["sink"] = str(disk.root / "labelled")
    killed_at(bad, "landing.before_write")
    disk.fill()

    bad.fails(NO_TABLE, "labelled", "No space left on device", "The table is as it was", bought=1)
    assert not [path for path in disk.root.rglob("*") if path.suffix in {".tmp", ".parquet"}]

    disk.free()
    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_files_that_may_not_grow(bad: Mistake) -> None:
    """As a quota does; needs no root."""
    bad.write(queries(3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        bad.fails(NO_RUN_FOLDER, "manifest", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_run_folder_that_is_read_only(bad: Mistake, disk: Disk) -> None:
    disk.mount("256k")
    runs_on(disk, bad)
    disk.remount("ro")

    bad.fails(NO_RUN_FOLDER, "Read-only file system")

    disk.remount("rw")
    bad.succeeds()


def test_a_sink_that_is_read_only_is_refused_before_anything_is_bought(
    bad: Mistake, disk: Disk
) -> None:
    disk.mount("256k")
    bad.job["sink"] = str(disk.root / "labelled")
    disk.remount("ro")

    bad.fails(NO_TABLE, "labelled", "read-only")

    disk.remount("rw")
    bad.succeeds()


def test_a_router_whose_disk_is_full(tmp_path: Path, disk: Disk) -> None:
    disk.mount("12m")
    with running_router(disk.root / "router") as router:
        bad = mistake(tmp_path / "job", router)
        disk.fill()

        bad.fails(NO_ANSWER, "storage_full", "same command", BATCHROUTER_MAX_ATTEMPTS="1")

        disk.free()
        bad.succeeds()


def journal(bad: Mistake) -> list[Path]:
    return sorted(bad.runs.glob("*/*/journal/*.json"))


def test_a_journal_of_a_newer_version(bad: Mistake) -> None:
    killed_at(bad, "journal.after_bought")
    newest = journal(bad)[-1]
    event = newest.read_text()
    newest.write_text(json.dumps({**json.loads(event), "version": 99}))

    bad.fails(NO_RUN_FOLDER, "version 99", "upgrade batchrouter-core", bought=1)

    newest.write_text(event)
    bad.succeeds()


def test_a_journal_with_a_hole(bad: Mistake) -> None:
    killed_at(bad, "journal.after_bought")
    lost = journal(bad)[3]
    event = lost.read_bytes()
    lost.unlink()

    bad.fails(NO_RUN_FOLDER, "journal event 4", "missing", "restore the file", bought=1)

    lost.write_bytes(event)
    bad.succeeds()


def test_a_journal_with_a_torn_event(bad: Mistake) -> None:
    killed_at(bad, "journal.after_bought")
    newest = journal(bad)[-1]
    event = newest.read_bytes()
    newest.write_bytes(event[:20])

    bad.fails(NO_RUN_FOLDER, "damaged", "restore the file", bought=1)

    newest.write_bytes(event)
    bad.succeeds()


def test_a_manifest_that_is_gone_before_it_is_sent(bad: Mistake) -> None:
    assert bad.cli("run", "--dry-run").returncode == 0
    shutil.rmtree(next(bad.runs.glob("*/*/manifest")))

    bad.fails(NO_RUN_FOLDER, "reading the manifest", "No such file", "mend the storage")


def test_a_row_snapshot_that_is_gone_before_the_landing(bad: Mistake) -> None:
    killed_at(bad, "landing.before_write")
    rows = next(bad.runs.glob("*/*/rows"))
    rows.rename(rows.with_name("elsewhere"))

    bad.fails(NO_RUN_FOLDER, "run folder", "/rows/", "No such file", bought=1)

    rows.with_name("elsewhere").rename(rows)
    bad.succeeds()


@pytest.mark.parametrize("damage", ["gone", "cut short", "a byte changed"])
def test_an_artifact_that_is_damaged_in_the_run_folder(bad: Mistake, damage: str) -> None:
    killed_at(bad, "landing.before_write")
    artifact = next(bad.runs.glob("*/*/artifact/*"))
    whole = artifact.read_bytes()
    if damage == "gone":
        artifact.unlink()
    elif damage == "cut short":
        artifact.write_bytes(whole[:-200])
    else:
        artifact.write_bytes(whole.replace(b"completed", b"complEted", 1))

    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_yesterdays_table_stays_when_todays_landing_fails(bad: Mistake) -> None:
    bad.succeeds()
    yesterday = bad.landed_files()
    bad.run_key += "-next"
    bad.write(queries(ROWS).append_column("more", pa.array(range(ROWS))))
    bad.job["keep"] = ["text", "more"]

    bad.fails(NO_TABLE, "more (int64) is new")

    assert bad.landed_files() == yesterday
    assert pq.read_table(next(iter(yesterday))).num_rows == ROWS
