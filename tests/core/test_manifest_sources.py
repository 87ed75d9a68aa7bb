"""Whatever a table is, its rows come in one order, with one schema, and mistakes are named."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.errors import SourceError
from batchrouter.job import Embedding, Job, Route
from batchrouter.manifest.sources import BATCH_ROWS, open_source

TABLE = pa.table({"id": [1, 2, 3], "body": ["a", None, "é"], "unused": [0.5, 1.5, 2.5]})


def _job(source: Any) -> Job:
    return Job(
        name="j", source=source, key="id", request=Embedding(input="{body}"),
        route=Route(models=["m"]), budget="none", sink="s",
    )  # fmt: skip


def _rows(source: Any, columns: Sequence[str] = ("body", "id")) -> list[dict[str, Any]]:
    opened = open_source(_job(source))
    batches = list(opened.batches(list(columns)))
    for batch in batches:
        assert batch.schema.equals(pa.schema([opened.schema.field(name) for name in columns]))
    return [row for batch in batches for row in batch.to_pylist()]


EXPECTED = [{"body": "a", "id": 1}, {"body": None, "id": 2}, {"body": "é", "id": 3}]


def _write(path: Path, table: pa.Table = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".arrows":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".jsonl":
        path.write_bytes(pl.from_arrow(table).write_ndjson().encode())  # pyright: ignore - a frame
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows", ".jsonl"])
def test_typed_files_give_their_rows(tmp_path: Path, suffix: str) -> None:
    assert _rows(_write(tmp_path / f"t{suffix}")) == EXPECTED


def test_csv_is_text_with_null_for_an_empty_field(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,body,day\n007,"a ""q"",\nb",2024-01-02\n8,,""\n')

    assert _rows(path, ["id", "body", "day"]) == [
        {"id": "007", "body": 'a "q",\nb', "day": "2024-01-02"},
        {"id": "8", "body": None, "day": ""},
    ]


def test_tab_separated_and_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"id\tbody\n1\ta,b\n"))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"id":1,"body":"a"}\n'))

    assert _rows(tmp_path / "t.tsv.gz") == [{"body": "a,b", "id": "1"}]
    assert _rows(tmp_path / "t.jsonl.gz") == [{"body": "a", "id": 1}]


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        TABLE.to_batches()[0],
        TABLE.to_reader(),
        pl.from_arrow(TABLE),
        TABLE.to_pandas(types_mapper=pd.ArrowDtype),
        pytest.param("duckdb", id="duckdb"),
    ],
    ids=lambda table: type(table).__module__.split(".")[0] + type(table).__name__,
)
def test_objects_in_memory_give_their_rows(table: Any) -> None:
    if isinstance(table, str):
        table = duckdb.sql("SELECT * FROM (VALUES (1, 'a'), (2, NULL), (3, 'é')) AS t(id, body)")

    assert _rows(table) == EXPECTED


def test_a_table_in_memory_can_be_read_twice_and_a_reader_cannot() -> None:
    reader = TABLE.to_reader()

    assert _rows(TABLE) == _rows(TABLE)
    assert _rows(reader) == EXPECTED
    with pytest.raises(SourceError, match="used up"):
        _rows(reader)


def test_a_folder_is_read_in_the_order_of_its_paths_with_its_partitions(tmp_path: Path) -> None:
    for day, shard in [("2024-01-02", "10"), ("2024-01-02", "9"), ("2024-01-01", "9")]:
        one = pa.table({"id": [f"{day}/{shard}"], "body": ["x"]})
        _write(tmp_path / f"day={day}" / f"shard={shard}" / "p.parquet", one)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "day=2024-01-01" / ".p.parquet.crc").touch()

    rows = _rows(tmp_path, ["id", "day", "shard"])

    assert rows == [
        {"id": "2024-01-01/9", "day": "2024-01-01", "shard": 9},
        {"id": "2024-01-02/10", "day": "2024-01-02", "shard": 10},
        {"id": "2024-01-02/9", "day": "2024-01-02", "shard": 9},
    ]
    only = tmp_path / "day=2024-01-01"
    assert _rows(only, ["day", "id"]) == [{"day": "2024-01-01", "id": "2024-01-01/9"}]
    assert _rows(only, ["day"]) == [{"day": "2024-01-01"}]


def test_partition_values_are_decoded_and_codes_stay_text(tmp_path: Path) -> None:
    for value in ("a%20b", "__HIVE_DEFAULT_PARTITION__"):
        _write(tmp_path / f"name={value}" / "code=007" / "p.parquet")

    rows = _rows(tmp_path, ["name", "code"])

    assert {(row["name"], row["code"]) for row in rows} == {(None, "007"), ("a b", "007")}


def test_a_glob_takes_what_matches(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "c.csv"):
        _write(tmp_path / name, TABLE.slice(0, 1)) if "csv" not in name else (
            tmp_path / name
        ).touch()

    assert len(_rows(f"{tmp_path}/*.parquet")) == 2


def test_a_url_of_another_file_system_is_read() -> None:
    with fsspec.filesystem("memory").open("/sources/t.parquet", "wb") as file:
        pq.write_table(TABLE, file)

    assert _rows("memory://sources/t.parquet") == EXPECTED
    assert _rows("memory://sources") == EXPECTED


def test_files_whose_types_differ_are_cast_only_when_nothing_is_lost(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", pa.table({"id": [1], "body": ["a"]}))
    _write(tmp_path / "b.parquet", pa.table({"id": pa.array([2], pa.int32()), "body": ["b"]}))

    assert [row["id"] for row in _rows(tmp_path)] == [1, 2]

    _write(tmp_path / "c.parquet", pa.table({"id": ["x"], "body": ["c"]}))
    with pytest.raises(SourceError, match=r"id is string in .*c.parquet and int64 in .*a.parquet"):
        _rows(tmp_path)


def test_a_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet")
    _write(tmp_path / "b.parquet", pa.table({"id": [1], "boddy": ["a"]}))

    with pytest.raises(SourceError, match=r"b.parquet has no column 'body'; did you mean 'boddy'"):
        _rows(tmp_path)


def test_batches_are_bounded_by_rows_and_bytes(tmp_path: Path) -> None:
    many = pa.table({"id": range(20_000), "body": ["x"] * 20_000})
    wide = pa.table({"id": range(2000), "body": [str(n) + "x" * 100_000 for n in range(2000)]})

    for source in (many, _write(tmp_path / "m.parquet", many), many.to_pandas()):
        batches = list(open_source(_job(source)).batches(["body"]))
        assert max(map(len, batches)) <= BATCH_ROWS
        assert sum(map(len, batches)) == 20_000
    for source in (wide, _write(tmp_path / "w.parquet", wide), _write(tmp_path / "w.arrow", wide)):
        batches = list(open_source(_job(source)).batches(["body"]))
        assert max(batch.nbytes for batch in batches) < 20 << 20


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.parquet", b"PAR1 not really", "cannot be read"),
        ("t.arrow", b"nothing", "cannot be read"),
        ("t.csv", b"", "cannot be read"),
        ("t.csv", b"a,a\n1,2\n", "two columns have one name"),
        ("t.csv", b"id,body\n1,2,3\n", "cannot be read"),
        ("t.jsonl", b'{"id": 1}\n{"id": \n', "line 2: is not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: is no JSON object"),
        ("t.jsonl", b'{"id": 1}\n{"id": "x"}\n', "line 2: id: text here and a whole number"),
        ("t.jsonl", b'{"a": {"b": 1}}\n{"a": {"b": []}}\n', r"line 2: a.b: a list here"),
        ("t.jsonl", b'{"id": 99999999999999999999}\n', "line 1: id: a number beyond 64 bits"),
        ("t.jsonl", b'{"id": NaN}\n', "line 1: is not JSON"),
        ("t.json", b"[]", "write JSON as lines and name it .jsonl"),
        ("t.xlsx", b"", "its name does not tell its format"),
        ("t.parquet.gz", b"", "its name does not tell its format"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=problem):
        _rows(tmp_path / name, ["id", "body"])


def test_what_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").touch()
    (tmp_path / "mixed" / "b.parquet").touch()

    for source, problem in [
        (tmp_path / "nowhere.parquet", "does not exist; check the path"),
        (tmp_path / "empty", "holds no file"),
        (f"{tmp_path}/*.parquet", "no file matches"),
        (tmp_path / "mixed", r"files of several formats \(csv, parquet\)"),
        ("nix://x/t.parquet", "nix"),
    ]:
        with pytest.raises(SourceError, match=problem):
            open_source(_job(source))


def test_json_lines_take_their_types_from_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "n": null, "t": "2024-01-02T03:04:05"}\r\n\n'
        b'{"id": 2, "n": 1, "late": [1], "s": {"a": 1}}\n'
        b'{"id": 3, "n": 1.5, "late": [2.5, null], "s": {"b": "x"}, "e": null}'
    )

    schema = open_source(_job(path)).schema

    assert schema == pa.schema([
        ("id", pa.int64()), ("n", pa.float64()), ("t", pa.string()),
        ("late", pa.list_(pa.float64())), ("s", pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ("e", pa.null()),
    ])  # fmt: skip
    assert _rows(path, ["id", "t", "late", "s"])[2] == {
        "id": 3, "t": None, "late": [2.5, None], "s": {"a": None, "b": "x"},
    }  # fmt: skip


def test_an_empty_table_has_a_schema_and_no_rows(tmp_path: Path) -> None:
    assert _rows(_write(tmp_path / "t.parquet", TABLE.slice(0, 0))) == []
    assert _rows(TABLE.slice(0, 0)) == []
    assert open_source(_job(TABLE.slice(0, 0))).schema == TABLE.schema
