"""A build that is shared among processes makes what one process makes, and fails as it does."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.errors import (
    BatchrouterError,
    ConfigError,
    DuplicateKeyError,
    ManifestError,
    NullKeyError,
    WorkerDiedError,
)
from batchrouter.job import Chat, Job, Raw, Route
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.workers import process_count

ROWS = 3000
CHAT = Chat(user="{body} {n}", output={"x": {"type": "integer"}})


@pytest.fixture(autouse=True)
def share_small_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("batchrouter.manifest.shares.LEAST_ROWS", 0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def _write(folder: Path, **changed: Callable[[int], Any]) -> Path:
    """Two files of three row groups each."""
    columns: dict[str, Callable[[int], Any]] = {
        "id": lambda n: f"k{n}",
        "body": lambda n: f'é"\n{n}' * (n % 7),
        "n": lambda n: n if n % 11 else None,
        **changed,
    }
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for file in range(2):
        numbers = range(file * ROWS // 2, (file + 1) * ROWS // 2)
        table = pa.table({name: [make(n) for n in numbers] for name, make in columns.items()})
        pq.write_table(table, source / f"{file}.parquet", row_group_size=ROWS // 6)
    return source


def _job(source: Path, **fields: Any) -> Job:
    given = {"request": CHAT, "on_null": "skip", "keep": ["body"], **fields}
    return Job(
        name="j", source=source, key="id", route=Route(models=["m"]), budget=1, sink="s", **given
    )


def _build(
    job: Job, folder: Path, processes: int, on_progress: Callable[[int], None] | None = None
) -> BuiltManifest:
    os.environ["BATCHROUTER_PROCESSES"] = str(processes)
    try:
        return build_manifest(
            job, fs=fsspec.filesystem("file"), manifest_dir=str(folder), rows_dir=str(folder),
            token="t", on_progress=on_progress,
        )  # fmt: skip
    finally:
        del os.environ["BATCHROUTER_PROCESSES"]


@pytest.mark.parametrize("parts", [None, {"max_items": 701}, {"max_bytes": 50_000}])
def test_parts_and_snapshots_are_the_same_whatever_the_number_of_processes(
    tmp_path: Path, parts: dict[str, int] | None
) -> None:
    job = _job(_write(tmp_path), parts=parts)

    built = [_build(job, tmp_path / str(n), n) for n in (1, 2, 3)]

    told = [{**one.to_dict(), "duration_s": 0} for one in built]
    assert told[0] == told[1] == told[2]
    assert built[0].skipped_count
    assert parts is None or len(built[0].parts) > 3
    for part in built[0].parts:
        lines = [(tmp_path / str(n) / part.manifest_path).read_bytes() for n in (1, 2, 3)]
        rows = [pq.read_table(tmp_path / str(n) / part.rows_path) for n in (1, 2, 3)]
        assert lines[0] == lines[1] == lines[2]
        assert rows[0].equals(rows[1])
        assert rows[0].equals(rows[2])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_largest_cap_of_the_rows_own_bodies_is_found_by_all(tmp_path: Path) -> None:
    source = _write(tmp_path, body=lambda n: f'{{"max_output_tokens": {1 + n * 7 % 1009}}}')
    job = _job(source, request=Raw(body="body"))

    assert [_build(job, tmp_path / str(n), n).max_output_tokens for n in (1, 2)] == [1009, 1009]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"id": lambda n: None if n == 2100 else f"k{n}"}, NullKeyError),
        ({"id": lambda n: "k7" if n == 2100 else f"k{n}"}, DuplicateKeyError),
        ({"body": lambda n: "x" * (2**20 if n == 1800 else 1)}, ManifestError),
        ({"n": lambda n: None if n == 2999 else n}, ManifestError),
    ],
    ids=["null key", "duplicate key", "long line", "null"],
)
def test_errors_are_the_same_and_nothing_is_left(
    tmp_path: Path, changed: dict[str, Any], error: type[BatchrouterError]
) -> None:
    job = _job(_write(tmp_path, **({"n": lambda n: n} | changed)), on_null="error")
    told: list[str] = []

    for processes in (1, 2):
        with pytest.raises(error) as caught:
            _build(job, tmp_path / "out", processes)
        told.append(str(caught.value))

    assert told[0] == told[1]
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_killed_worker_fails_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    def kill(_: int) -> None:
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                if b"manifest.workers" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    with pytest.raises(WorkerDiedError, match="killed by signal 9") as caught:
        _build(_job(_write(tmp_path)), tmp_path / "out", 2, kill)

    assert caught.value.retryable
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_daemonic_process_may_share_a_build(tmp_path: Path) -> None:
    """Orchestrators run tasks in such processes; multiprocessing forbids them children."""
    job = _job(_write(tmp_path), parts={"max_items": 701})
    here = _build(job, tmp_path / "here", 1)
    code = """
import multiprocessing, os, sys
import fsspec
from batchrouter.job import Job
from batchrouter.manifest import shares
from batchrouter.manifest.build import build_manifest

def work(document, out):
    shares.LEAST_ROWS = 0
    os.environ["BATCHROUTER_PROCESSES"] = "2"
    build_manifest(Job.model_validate(document), fs=fsspec.filesystem("file"), manifest_dir=out,
                   rows_dir=out, token="t")

if __name__ == "__main__":
    import json
    process = multiprocessing.get_context("fork").Process(
        target=work, args=(json.loads(sys.argv[1]), sys.argv[2]), daemon=True)
    process.start()
    process.join(120)
    sys.exit(process.exitcode)
"""
    command = [sys.executable, "-c", code, job.model_dump_json(), str(tmp_path / "there")]

    subprocess.run(command, check=True, timeout=150)

    for part in here.parts:
        there = (tmp_path / "there" / part.manifest_path).read_bytes()
        assert there == (tmp_path / "here" / part.manifest_path).read_bytes()


@pytest.mark.parametrize("told", ["0", "-1", "two", "1.5", "²"])
def test_a_number_of_processes_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("BATCHROUTER_PROCESSES", told)

    with pytest.raises(ConfigError, match="BATCHROUTER_PROCESSES"):
        process_count()
