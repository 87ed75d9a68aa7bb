"""The Parquet sink: one file a run, old or new, never half, and nothing but rows for readers."""

import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchrouter.errors import ConfigError, LandingError, SinkError
from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import open_sink

SCHEMA = pa.schema([("id", pa.int64()), ("label", pa.string())])
MONDAY = LandingIdentity("label", "monday", "monday-aaaa")
TUESDAY = LandingIdentity("label", "tuesday", "tuesday-bbbb")


def rows(*ids: int, label: str = "x") -> Any:
    yield pa.record_batch([pa.array(ids, pa.int64()), pa.array([label] * len(ids))], schema=SCHEMA)


def files(root: Path) -> list[str]:
    return sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "tickets"


def test_every_reader_sees_the_rows_of_all_runs_and_no_staging(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(1, 2), SCHEMA, MONDAY)
    sink.write(rows(3), SCHEMA, TUESDAY)
    left = table.parent / ".tickets.staging" / "label--other-cccc"
    left.mkdir(parents=True)
    pq.write_table(pa.table({"id": [99], "label": ["staged"]}), left / "dead.tmp")

    seen = {
        "pyarrow.dataset": ds.dataset(table, format="parquet").to_table(),
        "pyarrow.parquet": pq.read_table(table),
        "pandas": pa.Table.from_pandas(pd.read_parquet(table), preserve_index=False),
        "polars folder": pl.read_parquet(table).to_arrow(),
        "polars glob": pl.scan_parquet(f"{table}/**/*.parquet").collect().to_arrow(),
        "duckdb **": duckdb.sql(f"FROM '{table}/**/*.parquet'").to_arrow_table(),
        "duckdb */*": duckdb.sql(f"FROM '{table}/*/*.parquet'").to_arrow_table(),
        "duckdb lake": duckdb.sql(f"FROM '{table.parent}/**/*.parquet'").to_arrow_table(),
    }
    for reader, found in seen.items():
        assert found.column_names == ["id", "label"], reader
        assert sorted(found.column("id").to_pylist()) == [1, 2, 3], reader


def test_landing_a_run_again_replaces_its_rows_alone(table: Path) -> None:
    sink = open_sink(f"parquet:{table}")
    sink.write(rows(1, 2), SCHEMA, MONDAY)
    sink.write(rows(3), SCHEMA, TUESDAY)

    commit = sink.write(rows(4), SCHEMA, MONDAY)

    assert commit.rows == 1
    assert commit.bytes == Path(commit.location).stat().st_size
    assert sorted(pq.read_table(table).column("id").to_pylist()) == [3, 4]
    assert files(table.parent) == [
        "tickets/label--monday-aaaa/rows.parquet",
        "tickets/label--tuesday-bbbb/rows.parquet",
    ]


def test_two_jobs_of_one_run_key_do_not_replace_each_other(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(1), SCHEMA, MONDAY)
    sink.write(rows(2), SCHEMA, LandingIdentity("other job/../x", "monday", "monday-aaaa"))

    assert sorted(pq.read_table(table).column("id").to_pylist()) == [1, 2]
    names = [each.name for each in table.iterdir()]
    assert all(not each.startswith(("_", ".")) and "=" not in each for each in names)
    assert len(list(table.parent.iterdir())) == 1


def test_the_same_rows_give_the_same_bytes(table: Path) -> None:
    sink = open_sink(str(table))
    place = Path(sink.write(rows(1, 2), SCHEMA, MONDAY).location)
    before = place.read_bytes()

    sink.write(rows(1, 2), SCHEMA, MONDAY)

    assert place.read_bytes() == before


def test_other_columns_are_refused_by_name_before_anything_is_read(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(1), SCHEMA, MONDAY)
    other = pa.schema([("id", pa.string()), ("urgent", pa.bool_())])

    def never() -> Any:
        raise AssertionError("the rows were asked for")
        yield

    with pytest.raises(SinkError) as refused:
        sink.check(other, TUESDAY)
    assert str(refused.value).startswith(
        f"the table {table} has other columns: id is int64 in the table and string now;"
        " label (string) is only in the table; urgent (bool) is new."
    )
    sink.check(other, MONDAY)  # the only run is replaced, with its columns
    sink.check(pa.schema(list(reversed(list(SCHEMA)))), TUESDAY)


def test_types_that_parquet_keeps_otherwise_are_not_taken_for_a_change(table: Path) -> None:
    schema = pa.schema([
        ("at", pa.timestamp("s")),
        ("word", pa.dictionary(pa.int8(), pa.string())),
        ("n", pa.uint32()),
        ("d", pa.duration("s")),
        ("l", pa.large_list(pa.large_string())),
    ])
    sink = open_sink(str(table))
    sink.write(iter(schema.empty_table().to_batches()), schema, MONDAY)

    sink.check(schema, TUESDAY)


def test_rows_that_end_in_an_error_leave_the_table_as_it_was(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(1), SCHEMA, MONDAY)
    before = files(table.parent)

    def broken() -> Any:
        yield from rows(5, 6)
        raise LandingError("the counts do not add up")

    with pytest.raises(LandingError, match="add up"):
        sink.write(broken(), SCHEMA, MONDAY)
    with pytest.raises(LandingError, match="add up"):
        sink.write(broken(), SCHEMA, TUESDAY)

    assert files(table.parent) == before
    assert pq.read_table(table).column("id").to_pylist() == [1]
    assert not (table.parent / ".tickets.staging").exists()


def test_readers_see_old_or_new_and_never_nothing(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(*range(1000), label="0"), SCHEMA, MONDAY)
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = pq.read_table(table)
            seen.append((len(found), len(set(found.column("label").to_pylist()))))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(1, 30):
        sink.write(rows(*range(1000), label=str(turn)), SCHEMA, MONDAY)
    done.set()
    reader.join()

    assert set(seen) == {(1000, 1)}


def test_a_full_disk_is_a_sink_error_and_leaves_no_half_file(table: Path) -> None:
    sink = open_sink(str(table))
    sink.write(rows(1), SCHEMA, MONDAY)
    before = files(table.parent)
    # A limit on file size fails a write as a full disk does, without filling one.
    program = f"""
import os, random, resource, signal
import pyarrow as pa
from batchrouter.errors import SinkError
from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import open_sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
schema = pa.schema([("id", pa.int64()), ("label", pa.string())])
def rows():
    for _ in range(200):
        labels = [os.urandom(500).hex() for _ in range(1000)]
        yield pa.record_batch([pa.array(range(1000), pa.int64()), pa.array(labels)], schema=schema)
for slug in ("monday-aaaa", "tuesday-bbbb"):
    try:
        open_sink({str(table)!r}).write(rows(), schema, LandingIdentity("label", "x", slug))
    except SinkError as error:
        assert "File too large" in str(error), error
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )

    assert done.stdout.splitlines() == ["refused", "refused"], done.stderr
    assert files(table.parent) == before
    assert pq.read_table(table).column("id").to_pylist() == [1]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000


def test_a_place_that_cannot_be_written_is_a_sink_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(SinkError, match="cannot be written"):
        open_sink(str(tmp_path / "file" / "table")).write(rows(1), SCHEMA, MONDAY)


def test_an_object_store_is_written_by_one_put(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    sink = open_sink("memory://bucket/tickets")

    commit = sink.write(rows(1, 2), SCHEMA, MONDAY)
    sink.write(rows(3), SCHEMA, TUESDAY)
    sink.write(rows(4), SCHEMA, MONDAY)

    assert commit.location == "memory://bucket/tickets/label--monday-aaaa/rows.parquet"
    assert memory.find("/bucket") == [
        "/bucket/tickets/label--monday-aaaa/rows.parquet",
        "/bucket/tickets/label--tuesday-bbbb/rows.parquet",
    ]
    assert sorted(pq.read_table("/bucket/tickets", filesystem=memory).column("id").to_pylist()) == [
        3,
        4,
    ]
    with pytest.raises(SinkError, match="id is int64 in the table"):
        sink.check(pa.schema([("id", pa.string()), ("label", pa.string())]), MONDAY)

    def no_connection(*_: Any, **__: Any) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(type(memory), "put_file", no_connection)
    with pytest.raises(SinkError, match="connection reset"):
        sink.write(rows(9), SCHEMA, MONDAY)
    assert pq.read_table("/bucket/tickets/label--monday-aaaa", filesystem=memory).column(
        "id"
    ).to_pylist() == [4]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@h/db",
        "snowflake:u:secret@h",
        "nonsense://u:secret@h/x",
        "sftp://u:secret@h/x",
    ],
)
def test_what_is_no_parquet_directory_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_sink(url)

    assert "secret" not in str(refused.value)


def test_credentials_of_a_url_are_not_shown() -> None:
    sink = open_sink("memory://user:secret@bucket/tickets")

    assert "secret" not in repr(sink) + sink.write(rows(1), SCHEMA, MONDAY).location
