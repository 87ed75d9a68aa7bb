"""Equal requests are sent once, by the first row that asks; the others name its item."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.errors import DuplicateKeyError
from batchrouter.job import Chat, Job, Raw, Route
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.repeats import Repeats

ROWS = 3000


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("batchrouter.manifest.shares.LEAST_ROWS", 0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def _table(rows: int = ROWS) -> pa.Table:
    """Bodies in groups of several sizes, far apart and close together; some are NULL."""
    numbers = [n * n % 701 if n % 3 else n for n in range(rows)]
    return pa.table({
        "id": [f"k{n}" for n in range(rows)],
        "body": [None if n % 13 == 5 else f'é"\n{numbers[n]}' for n in range(rows)],
    })


def _job(source: Any, **fields: Any) -> Job:
    given = {"request": Chat(user="{body}"), "on_null": "skip", "dedupe": True, **fields}
    return Job(
        name="j", source=source, key="id", route=Route(models=["m"]), budget=1, sink="s", **given
    )


def _build(job: Job, folder: Path, processes: int = 1, **options: Any) -> BuiltManifest:
    os.environ["BATCHROUTER_PROCESSES"] = str(processes)
    try:
        return build_manifest(
            job, fs=fsspec.filesystem("file"), manifest_dir=str(folder), rows_dir=str(folder),
            token="t", **options,
        )  # fmt: skip
    finally:
        del os.environ["BATCHROUTER_PROCESSES"]


def _requests(built: BuiltManifest, folder: Path) -> list[tuple[str, str]]:
    """Ids and requests of all lines, in order."""
    lines = b"".join((folder / part.manifest_path).read_bytes() for part in built.parts)
    read = [json.loads(line) for line in lines.splitlines()]
    return [(line.pop("customer_item_id"), json.dumps(line)) for line in read]


def _rows(built: BuiltManifest, folder: Path) -> list[dict[str, Any]]:
    return [row for p in built.parts for row in pq.read_table(folder / p.rows_path).to_pylist()]


def _check(job: Job, folder: Path, processes: int = 1) -> BuiltManifest:
    """Hold a deduplicated build against the plain one, row by row."""
    plain_job = job.model_copy(update={"dedupe": False})
    plain, built = _build(plain_job, folder / "plain"), _build(job, folder / "once", processes)
    asked = dict(_requests(plain, folder / "plain"))
    sent = _requests(built, folder / "once")
    first_with: dict[str, str] = {}
    for item_id, request in asked.items():
        first_with.setdefault(request, item_id)
    assert sent == [(item_id, request) for request, item_id in first_with.items()]
    rows, plain_rows = _rows(built, folder / "once"), _rows(plain, folder / "plain")
    lines = iter([at for part in built.parts for at in range(part.item_count)])
    for row, before in zip(rows, plain_rows, strict=True):
        own = before["_item_id"]
        takes = first_with[asked[own]] if own in asked else own
        is_sent = own in asked and takes == own
        line = next(lines) if is_sent else None
        assert row == {**before, "_item_id": takes, "_line": line}
    assert built.item_count == len(sent)
    assert built.row_count == plain.row_count
    assert built.skipped_count == plain.skipped_count
    assert built.repeated_count == plain.item_count - built.item_count
    for part in built.parts:
        told = pq.read_metadata(folder / "once" / part.rows_path).metadata or {}
        assert int(told.get(b"batchrouter.repeated_rows", 0)) == part.repeated_count
    assert list((folder / "tmp").iterdir()) == []
    return built


@pytest.mark.parametrize("parts", [None, {"max_items": 301}, {"max_bytes": 20_000}])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_of_equal_requests_is_sent(
    tmp_path: Path, parts: dict[str, int] | None, processes: int
) -> None:
    pq.write_table(_table(), tmp_path / "in.parquet", row_group_size=ROWS // 3)

    built = _check(_job(tmp_path / "in.parquet", parts=parts), tmp_path, processes)

    assert built.repeated_count > 500
    assert parts is None or len(built.parts) > 3


@settings(max_examples=30, deadline=None)
@given(
    bodies=st.lists(st.one_of(st.none(), st.sampled_from("ab"), st.text(max_size=2)), max_size=40)
)
def test_any_table_is_sent_once(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[str | None]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "tmp").mkdir()
    table = pa.table({
        "id": pa.array(range(len(bodies)), pa.int64()),
        "body": pa.array(bodies, pa.string()),
    })

    _check(_job(table, parts={"max_items": 3}), folder)


def test_bodies_of_the_rows_own_are_compared_as_they_are_sent(tmp_path: Path) -> None:
    table = pa.table({
        "id": [1, 2, 3],
        "body": ['{"input":"a"}', '{ "input": "a" }', '{"input":"b"}'],
    })

    built = _check(_job(table, request=Raw(body="body")), tmp_path)

    assert (built.item_count, built.repeated_count) == (2, 1)


def test_a_hash_that_two_requests_share_spares_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weak(data: Any) -> bytes:
        return bytes(15) + bytes([xxhash.xxh3_64_intdigest(data) % 8])

    monkeypatch.setattr(
        "batchrouter.manifest.snapshot.xxhash", SimpleNamespace(xxh3_128_digest=weak)
    )
    bodies = [f"{n % 20}" for n in range(60)]
    built = _build(_job(pa.table({"id": range(60), "body": bodies})), tmp_path)

    sent = _requests(built, tmp_path)
    rows = _rows(built, tmp_path)

    asked = dict(sent)
    for row, body in zip(rows, bodies, strict=True):
        assert json.loads(asked[row["_item_id"]])["input"]["messages"][0]["content"] == body
    assert 20 < len(sent) < 60
    assert len(sent) == sum(row["_line"] is not None for row in rows)


@pytest.mark.parametrize("held_bytes", [1, 500, 1 << 20])
def test_the_first_row_is_found_wherever_hashes_and_rows_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr("batchrouter.manifest.files._HELD_BYTES", held_bytes)
    monkeypatch.setattr("batchrouter.manifest.repeats._ROWS_A_FILE", 100)
    chance = np.random.default_rng(7)
    requests = chance.integers(0, 300, 1000)
    digests = np.frombuffer(
        b"".join(xxhash.xxh3_128_digest(bytes(str(n), "ascii")) for n in requests), np.uint8
    ).reshape(-1, 16)
    repeats = Repeats(tmp_path)

    for start in range(0, 1000, 170):
        rows = np.arange(start, min(1000, start + 170))
        repeats.add(rows, digests[rows])
    firsts = repeats.found()
    found: dict[int, int] = {}
    for start in range(0, 1000, 130):
        rows, first = firsts.between(start, min(130, 1000 - start))
        found |= dict(zip(rows.tolist(), first.tolist(), strict=True))

    _, first_at, which = np.unique(requests, return_index=True, return_inverse=True)
    expected = {n: int(first_at[which[n]]) for n in range(1000) if first_at[which[n]] != n}
    assert found == expected
    assert not [path for path in tmp_path.iterdir() if path.name != "tmp"]


def test_a_repeated_key_is_named_though_its_rows_are_equal(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 1], "body": ["a", "a", "a"]})

    with pytest.raises(DuplicateKeyError, match="id=1 in rows 0, 2"):
        _build(_job(table), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_progress_counts_each_row_once(tmp_path: Path) -> None:
    told: list[int] = []

    _build(_job(_table()), tmp_path, on_progress=told.append)

    assert told == sorted(told)
    assert told[-1] == ROWS


PROGRAM = """
import sys, fsspec
from batchrouter.job import Chat, Job, Route
from batchrouter.manifest.build import build_manifest
job = Job(name="j", source=sys.argv[1], key="id", request=Chat(user="{body}"), on_null="skip",
          route=Route(models=["m"]), budget=1, sink="s", dedupe=True, parts={"max_items": 301})
build_manifest(job, fs=fsspec.filesystem("file"), manifest_dir=sys.argv[2], rows_dir=sys.argv[2],
               token=sys.argv[3])
# The peak of this program alone; getrusage would tell the parent's before the exec.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.parametrize("point", ["before_part:2", "after_close:2"])
def test_a_build_that_was_killed_is_made_anew(tmp_path: Path, point: str) -> None:
    pq.write_table(_table(), tmp_path / "in.parquet")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "in.parquet"), str(tmp_path / "out")]
    killed = {**os.environ, "BATCHROUTER_KILL_AT": f"manifest.{point}", "TMPDIR": str(tmp_path)}

    assert subprocess.run([*command, "first"], env=killed, check=False).returncode == -9
    subprocess.run([*command, "again"], check=True, stdout=subprocess.DEVNULL)

    whole = _build(_job(_table(), parts={"max_items": 301}), tmp_path / "whole")
    for part in whole.parts:
        name = f"again{part.manifest_path[1:]}"
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "whole" / part.manifest_path
        ).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    peaks: list[int] = []
    for groups in (4, 16):
        path = tmp_path / f"{groups}.parquet"
        schema = pa.schema([("id", pa.int64()), ("body", pa.string())])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in range(groups):
                ids = list(range(group * 2500, group * 2500 + 2500))
                texts = [f"{n // 2} " * 300 for n in ids]
                writer.write_table(pa.table([ids, texts], schema=schema))
        out = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("301", "10000000"), str(path),
             str(tmp_path / str(groups)), "t"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "BATCHROUTER_PROCESSES": "1"},
        )  # fmt: skip
        peaks.append(int(out.stdout) // 1024)

    assert peaks[1] < peaks[0] + 30, peaks
