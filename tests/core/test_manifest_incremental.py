"""Rows that the table holds with the same key and request are left out, and no others."""

import datetime as dt
import decimal
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from batchrouter.errors import DuplicateKeyError, SinkError
from batchrouter.job import Chat, Job, Route
from batchrouter.manifest import bought as bought_rows
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.keys import codes

ROWS = 3000


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("batchrouter.manifest.shares.LEAST_ROWS", 0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def _table(body: Callable[[int], str | None], rows: int = ROWS) -> pa.Table:
    numbers = range(rows)
    return pa.table({
        "id": pa.array(numbers, pa.int32()),
        "day": [f"d{n % 3}" for n in numbers],
        "body": pa.array([body(n) for n in numbers], pa.string()),
    })


def _job(source: Any, **fields: Any) -> Job:
    return Job.model_validate({
        "name": "j", "source": source, "key": ["day", "id"], "request": Chat(user="{body}"),
        "on_null": "skip", "route": Route(models=["m"]), "budget": 1, "sink": "s", **fields,
    })  # fmt: skip


def _build(job: Job, folder: Path, processes: int = 1, **options: Any) -> BuiltManifest:
    os.environ["BATCHROUTER_PROCESSES"] = str(processes)
    try:
        return build_manifest(
            job, fs=fsspec.filesystem("file"), manifest_dir=str(folder), rows_dir=str(folder),
            token="t", **options,
        )  # fmt: skip
    finally:
        del os.environ["BATCHROUTER_PROCESSES"]


def _snapshot(built: BuiltManifest, folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / part.rows_path) for part in built.parts])


def _landed(job: Job, folder: Path) -> pa.Table:
    """What a table would hold had every row of the job succeeded that was sent."""
    rows = _snapshot(_build(job, folder), folder)
    return rows.filter(pa.compute.is_valid(rows["_request_hash"])).select([
        *job.key_columns,
        "_request_hash",
    ])


def _body(n: int) -> str | None:
    return None if n % 13 == 5 else f'é"\n{n * n % 701}'


def _now(n: int) -> str | None:
    """Every seventh row has changed since, and some are NULL now."""
    return None if n % 77 == 1 else f"new {n % 50}" if n % 7 == 1 else _body(n)


@pytest.mark.parametrize(
    ("processes", "dedupe", "held_rows"),
    [(1, False, 1 << 20), (1, True, 1 << 20), (1, True, 64), (2, True, 1 << 20)],
)
def test_only_new_and_changed_rows_are_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    processes: int,
    dedupe: bool,
    held_rows: int,
) -> None:
    monkeypatch.setattr(bought_rows, "_HELD_ROWS", held_rows)
    monkeypatch.setattr("batchrouter.manifest.files._HELD_BYTES", 5000)
    before = _landed(_job(_table(_body)), tmp_path / "before")
    failed = np.arange(len(before)) % 5 == 2
    landed = before.filter(pa.array(~failed))
    pq.write_table(_table(_now), tmp_path / "in.parquet", row_group_size=700)
    job = _job(tmp_path / "in.parquet", dedupe=dedupe, parts={"max_items": 301})
    plain = _build(job, tmp_path / "plain")

    built = _build(job, tmp_path / "out", processes, bought=landed.to_batches(400))

    bought = {(row["day"], row["id"]): row["_request_hash"] for row in landed.to_pylist()}
    every = _snapshot(plain, tmp_path / "plain").to_pylist()
    expected = [row for row in every if row["_request_hash"] is None
                or bought.get((row["day"], row["id"])) != row["_request_hash"]]  # fmt: skip
    rows = _snapshot(built, tmp_path / "out").to_pylist()
    same = ("_row", "day", "id", "_request_hash", "_skip_reason")
    assert [[r[n] for n in same] for r in rows] == [[r[n] for n in same] for r in expected]
    assert built.unchanged_count == ROWS - len(expected) > 1500
    assert built.row_count == len(expected)
    assert built.item_count + built.skipped_count + built.repeated_count == len(expected)
    assert (built.repeated_count > 0) is dedupe
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unchanged_table_has_nothing_to_buy(tmp_path: Path, processes: int) -> None:
    pq.write_table(_table(lambda n: f"b{n}"), tmp_path / "in.parquet", row_group_size=700)
    job = _job(tmp_path / "in.parquet")
    landed = _landed(job, tmp_path / "before")

    built = _build(job, tmp_path / "out", processes, bought=landed.to_batches())

    assert (built.row_count, built.item_count, built.unchanged_count) == (0, 0, ROWS)
    assert len(built.parts) == 1
    assert len(_snapshot(built, tmp_path / "out")) == 0


def test_a_new_table_is_bought_whole(tmp_path: Path) -> None:
    built = _build(_job(_table(_body)), tmp_path, bought=[])

    assert (built.row_count, built.unchanged_count) == (ROWS, 0)


def test_the_same_request_under_another_key_is_bought(tmp_path: Path) -> None:
    job = _job(_table(lambda _: "b", 10))
    landed = _landed(job, tmp_path / "before")
    others = landed.set_column(1, "id", pa.array(range(10, 20), pa.int32()))

    assert _build(job, tmp_path / "out", bought=others.to_batches()).unchanged_count == 0


def test_a_repeated_key_is_named_though_one_row_is_unchanged(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "day": ["d", "d"], "body": ["a", "b"]})
    landed = _landed(_job(table), tmp_path / "before")
    twice = pa.table({"id": [2, 1, 1], "day": ["d"] * 3, "body": ["b", "x", "a"]})

    with pytest.raises(DuplicateKeyError, match="day='d', id=1 in rows 1, 2"):
        _build(_job(twice), tmp_path / "out", bought=landed.to_batches())
    both = pa.table({"id": [1, 1], "day": ["d"] * 2, "body": ["a", "a"]})
    with pytest.raises(DuplicateKeyError, match="day='d', id=1 in rows 0, 1"):
        _build(_job(both), tmp_path / "out", bought=landed.to_batches())
    assert list((tmp_path / "tmp").iterdir()) == []


_DAY = dt.datetime(2026, 11, 22, 7, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "in_source", "in_table"),
    [
        (7, pa.int16(), pa.int64()),
        ("a", pa.string_view(), pa.large_string()),
        ("a", pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (decimal.Decimal("1.50"), pa.decimal128(10, 2), pa.decimal128(38, 4)),
        (_DAY, pa.timestamp("ns", "Europe/Paris"), pa.timestamp("us", "UTC")),
        (dt.date(2026, 11, 22), pa.date32(), pa.timestamp("us")),
    ],
)
def test_a_table_may_store_a_key_in_a_wider_type(
    tmp_path: Path, value: Any, in_source: pa.DataType, in_table: pa.DataType
) -> None:
    table = pa.table({"id": pa.array([value], in_source), "body": ["b"]})
    job = _job(table, key="id")
    landed = _landed(job, tmp_path / "before")
    stored = landed.set_column(0, "id", table["id"].cast(in_table))

    assert _build(job, tmp_path / "out", bought=stored.to_batches()).unchanged_count == 1


def test_a_key_that_has_another_type_in_the_table_is_refused(tmp_path: Path) -> None:
    job = _job(_table(_body, 5), key="id")
    stored = pa.table({"id": ["x"], "_request_hash": ["1-abc"]})

    with pytest.raises(SinkError, match="key column 'id' is string in the table and int32 in the"):
        _build(job, tmp_path / "out", bought=stored.to_batches())
    assert not list((tmp_path / "out").iterdir())


def test_rows_of_an_older_hash_are_compared_by_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(request: bytes) -> bytes:
        return xxhash.xxh3_128_digest(request, seed=7)

    monkeypatch.setitem(bought_rows.REQUEST_DIGESTS, 0, older)
    table = _table(lambda n: f"b{n}", 6)
    job = _job(table)
    landed = _landed(job, tmp_path / "before")
    lines = (tmp_path / "before/t-part-00000.jsonl").read_bytes().splitlines()
    requests = [line[line.index(b",") :] for line in lines]
    digests = b"".join(older(request) for request in requests)
    old = [text.replace("1-", "0-") for text in codes(digests, b"0-").to_pylist()]
    mixed = [*old[:3], *landed["_request_hash"].to_pylist()[3:5], "0-" + "a" * 26]
    stored = landed.set_column(2, "_request_hash", pa.array(mixed))

    built = _build(job, tmp_path / "out", bought=stored.to_batches())

    assert built.unchanged_count == 5
    assert _snapshot(built, tmp_path / "out")["id"].to_pylist() == [5]


@pytest.mark.parametrize("told", ["9-abc", "abc", "-1-abc"])
def test_a_hash_of_an_unknown_version_buys_nothing(tmp_path: Path, told: str) -> None:
    job = _job(_table(_body, 5))
    landed = _landed(job, tmp_path / "before")
    texts = [*landed["_request_hash"].to_pylist()[1:], told]
    stored = landed.set_column(2, "_request_hash", pa.array(texts))

    with pytest.raises(SinkError, match=r"hashes of version .* upgrade batchrouter"):
        _build(job, tmp_path / "out", bought=stored.to_batches())
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("told", ["1-", "1-short", f"1-{'A' * 26}", f"1-{'a' * 27}", "1-é"])
def test_a_hash_that_is_not_ours_is_of_no_row(tmp_path: Path, told: str) -> None:
    job = _job(_table(_body))
    landed = _landed(job, tmp_path)
    hashes = [told, *landed["_request_hash"].to_pylist()[1:]]
    landed = landed.set_column(2, "_request_hash", pa.array(hashes, pa.string()))

    built = _build(job, tmp_path, bought=iter(landed.to_batches()))

    assert built.item_count == 1
    assert built.unchanged_count == len(landed) - 1
