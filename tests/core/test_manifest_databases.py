"""Queries, Delta and Iceberg tables as sources: their rows, their versions, their mistakes."""

import json
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import deltalake
import duckdb
import psycopg
import pyarrow as pa
import pytest

from batchrouter import Run, Settings
from batchrouter.errors import BatchrouterError, ConfigError, JobError, SourceError
from batchrouter.job import Embedding, Job, Route
from batchrouter.manifest.check import check_job
from batchrouter.manifest.connections import Connection, connection_named
from batchrouter.manifest.sources import BATCH_ROWS, open_source

PASSWORD = "hunter2/secret"
"""Written as it is: what a person pastes into a URL is often not percent-encoded."""


def _job(source: Any, **changes: Any) -> Job:
    return Job.model_validate({
        "name": "j", "source": source, "key": "id", "request": Embedding(input="{body}"),
        "route": Route(models=["m"]), "budget": "none", "sink": "s", **changes,
    })  # fmt: skip


def _query(sql: str, connection: str = "here", **changes: Any) -> Job:
    return _job({"sql": sql, "connection": connection}, **changes)


def _table(job: Job, columns: list[str] | None = None, **options: Any) -> pa.Table:
    source = open_source(job, **options)
    columns = columns or source.schema.names
    batches = list(source.batches(columns))
    assert all(len(batch) <= BATCH_ROWS for batch in batches)
    schema = pa.schema([source.schema.field(name) for name in columns])
    return pa.Table.from_batches(batches, schema)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def connect(told: str | Mapping[str, str], name: str = "HERE") -> None:
        text = told if isinstance(told, str) else json.dumps(told)
        monkeypatch.setenv(f"BATCHROUTER_CONNECTION_{name}", text)

    return connect


@pytest.fixture
def postgres(postgres_url: str, connect: Any) -> Iterator[psycopg.Connection[Any]]:
    connect(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sqlite(tmp_path: Path, connect: Any) -> Iterator[sqlite3.Connection]:
    connect(f"sqlite:///{tmp_path}/t.db")
    connection = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    connection.execute("create table t (id integer, body text)")
    connection.executemany("insert into t values (?, ?)", [(1, "a"), (2, None), (3, "é")])
    yield connection
    connection.close()


# Queries


def test_a_query_of_postgres_gives_typed_columns(postgres: psycopg.Connection[Any]) -> None:
    name = f"t_{uuid4().hex}"
    postgres.execute(
        f"create table {name} (id bigint, body text, price numeric(10, 2), free numeric,"
        " data jsonb, day date, at timestamptz, tags text[], ok boolean, code uuid)"
    )
    postgres.execute(
        f"insert into {name} values (1, 'a', 1.25, 0.1, '{{\"a\": 1}}', '2026-11-22',"
        " '2026-11-22 01:00+01', '{x,y}', true, '00000000-0000-0000-0000-000000000001'),"
        " (2, null, null, null, null, null, null, null, null, null)"
    )

    table = _table(_query(f"select * from {name} order by id -- all of it"))

    assert table.schema.field("price").type == pa.decimal128(10, 2)
    assert table.schema.field("free").type == pa.string()
    assert table["price"].to_pylist() == [Decimal("1.25"), None]
    assert table.select(["id", "body", "free", "data", "tags", "ok"]).to_pylist() == [
        {"id": 1, "body": "a", "free": "0.1", "data": '{"a": 1}', "tags": ["x", "y"], "ok": True},
        {"id": 2, "body": None, "free": None, "data": None, "tags": None, "ok": None},
    ]
    assert check_job(_query(f"select * from {name} where id = 1", keep=["price", "code"])) == []


def test_a_large_query_streams_and_can_be_left(postgres: psycopg.Connection[Any]) -> None:
    sql = "select g as id, repeat('x', 5000) as body from generate_series(1, 40000) g"

    batches = open_source(_query(sql)).batches(["body"])
    first = next(batches)
    batches.close()  # type: ignore[attr-defined]

    assert first.nbytes < 10 << 20
    assert len(_table(_query(sql), ["id"])) == 40000


@pytest.mark.parametrize("scheme", ["sqlite", "duckdb"])
def test_a_query_of_a_database_file_gives_its_rows(
    tmp_path: Path, scheme: str, connect: Any, sqlite: sqlite3.Connection
) -> None:
    if scheme == "duckdb":
        with duckdb.connect(tmp_path / "d.db") as connection:
            connection.sql(
                "create table t as select * from (values (1, 'a'), (2, null)) v(id, body)"
            )
        connect(f"duckdb:///{tmp_path}/d.db")
    job = _query("select id, body from t where id < ${params.most} order by id", params={"most": 3})

    assert _table(job, ["body", "id"]).to_pylist() == [
        {"body": "a", "id": 1},
        {"body": None, "id": 2},
    ]


def test_any_installed_driver_can_be_named_with_its_options(
    tmp_path: Path, connect: Any, sqlite: sqlite3.Connection
) -> None:
    import adbc_driver_sqlite

    uri = f"{tmp_path}/t.db"
    connect({"driver": adbc_driver_sqlite._driver_path(), "uri": uri})

    assert _table(_query("select id from t; ")).num_rows == 3


def test_a_query_writes_nothing(sqlite: sqlite3.Connection, postgres: Any, tmp_path: Path) -> None:
    name = f"t_{uuid4().hex}"
    postgres.execute(f"create table {name} as select 1 as id, 'a' as body")

    assert _table(_query(f"delete from {name} returning id, body")).num_rows == 1

    assert postgres.execute(f"select count(*) from {name}").fetchone() == (1,)


def test_sqlite_types_that_change_are_told_with_what_to_do(sqlite: sqlite3.Connection) -> None:
    late = [(n, None if n < 5000 else "late") for n in range(10, 6000)]
    sqlite.execute("begin")
    sqlite.executemany("insert into t values (?, ?)", late)
    sqlite.execute("commit")
    sqlite.execute("update t set body = null where id < 10")

    with pytest.raises(SourceError, match=r"Type mismatch in column 1.*coalesce\(column, ''\)"):
        _table(_query("select id, body from t"))
    fixed = _table(_query("select id, coalesce(body, '') as body from t"))

    assert fixed["body"].to_pylist()[-1] == "late"


def test_a_run_reads_its_query_once(sqlite: sqlite3.Connection, tmp_path: Path) -> None:
    job = _query("select id, body from t where body is not null")
    settings = Settings(runs_url=str(tmp_path / "runs"))
    with Run.open(job, run_key="1", settings=settings) as run:
        run.build()
    sqlite.execute("drop table t")

    with Run.open(job, run_key="1", settings=settings) as run:
        run.build()
        manifest = run._context.manifest

    assert manifest.row_count == 2


def test_a_query_is_part_of_what_decides_the_purchase(sqlite: sqlite3.Connection) -> None:
    one, two = _query("select 1 as id"), _query("select 2 as id")

    assert one.fingerprint()["source"] != two.fingerprint()["source"] != "in-memory"
    assert one.fingerprint() == _query("select 1 as id").fingerprint()
    assert Job.model_validate(one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"sql": "select 1"}, "source.connection: is missing"),
        ({"connection": "w"}, "source.sql: is missing; give a query"),
        ({"sql": "s", "connection": "w", "conection": 1}, "source.conection: there is no such"),
        ({"sql": "s", "connection": f"postgresql://u:{PASSWORD}@h/d"}, "must be a name of letters"),
        ("postgresql://h/d", "write {sql: select …, connection: NAME}"),
        ("delta:", "names no table after delta:"),
    ],
)
def test_a_wrong_source_is_told_at_load(source: Any, problem: str) -> None:
    with pytest.raises(JobError) as told:
        _job(source)

    assert problem in str(told.value)
    assert "hunter2" not in str(told.value)


def test_a_parameter_cannot_bring_sql(sqlite: sqlite3.Connection) -> None:
    job = _query("select id, body from t where body = '${params.x}'", params={"x": "a"})

    assert _table(job).num_rows == 1
    for value in ("a' or '1'='1", "a; drop table t", "a -- b", "a\\"):
        with pytest.raises(JobError, match=r"source\.sql: the parameter .x. has characters"):
            open_source(job.with_params({"x": value}))


# Mistakes, and what they must not show


def _told_of(job: Job) -> BatchrouterError:
    with pytest.raises(BatchrouterError) as told:
        _table(job)
    shown: BaseException | None = told.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = shown.__cause__
    assert told.value.__suppress_context__ or told.value.__context__ is None
    return told.value


def test_a_wrong_query_has_the_drivers_message(
    postgres: psycopg.Connection[Any], sqlite: sqlite3.Connection, connect: Any, postgres_url: str
) -> None:
    assert "no such column: nope" in str(_told_of(_query("select nope from t")))

    connect(postgres_url)
    job = _query("select nope from pg_class")

    assert str(_told_of(job)) == (
        "source: connection 'here': [libpq] Failed to prepare query: ERROR: column \"nope\" does"
        " not exist LINE 1: select nope from pg_class ^"
    ).replace("[libpq] ", "")
    assert check_job(job) == [str(_told_of(job))]
    assert "division by zero" in str(
        _told_of(_query("select 1 / (g - 9) as id from generate_series(1, 9) g"))
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{password}@127.0.0.1:{port}/db",
        "postgresql://me:{password} x@127.0.0.1:{port}/db",
        "postgresql://me:%zz{password}@127.0.0.1:{port}/db",
        "postgresql://127.0.0.1:{port}/db?user=me&password={password}",
        "postgresql://127.0.0.1:{port}/db?nonsense={password}",
        '{{"driver": "postgresql", "uri": "postgresql://127.0.0.1:{port}/", "pw": "{password}"}}',
        "nodriver://me:{password}@127.0.0.1:{port}/db",
    ],
)
def test_a_refused_connection_tells_no_secret(connect: Any, url: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        connect(url.format(password=PASSWORD, port=free.getsockname()[1]))

    error = _told_of(_query("select 1 as id"))

    assert "'here'" in str(error)


def test_a_server_that_does_not_answer_is_given_up(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connect(f"postgresql://me:hunter2@127.0.0.1:{port}/db?connect_timeout=2")

        error = _told_of(_query("select 1 as id"))

    assert "timeout expired" in str(error)


def test_a_connection_that_is_not_there_names_its_variable(tmp_path: Path, connect: Any) -> None:
    job = _query("select 1", "nowhere")
    with pytest.raises(ConfigError, match="set BATCHROUTER_CONNECTION_NOWHERE to its URL"):
        open_source(job)
    for wrong, problem in [
        (f"sqlite:///{tmp_path}/none.db", f"there is no file {tmp_path}/none.db"),
        (f"user:{PASSWORD}", "HERE holds no URL"),
        ("{broken" + PASSWORD, "HERE holds broken JSON"),
        ('{"uri": "x"}', 'HERE: its JSON needs a "driver"'),
        ("nodriver://x", "no ADBC driver 'nodriver' is installed"),
    ]:
        connect(wrong)
        assert problem in str(_told_of(_query("select 1")))
    assert not (tmp_path / "none.db").exists()


def test_a_connection_shows_no_secret_of_its_own() -> None:
    one = Connection("w", "x", f"x://me:{PASSWORD}@h/d?token=abcdef", {"account_key": "k3y!"})

    masked = one.masked(f"x://me:{PASSWORD}@h/d?token=abcdef failed: {PASSWORD} abcdef k3y! me h d")

    assert masked == "*** failed: *** *** *** me h d"
    assert "hunter2" not in repr(one)
    assert "abcdef" not in repr(one)


def test_a_missing_driver_is_named_with_the_command(
    sqlite: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adbc_driver_sqlite.dbapi", None)

    with pytest.raises(ConfigError, match=r"pip install 'batchrouter-core\[sqlite\]'"):
        open_source(_query("select 1"))
    assert connection_named("here").driver == "sqlite"


# Tables with versions


ROWS = pa.table({"id": [1, 2, 3], "body": ["a", None, "é"]})
MORE = pa.table({"id": [4], "body": ["d"]})


def _sorted(table: pa.Table) -> list[dict[str, Any]]:
    return table.sort_by("id").to_pylist()


def test_a_delta_table_is_read_without_what_was_deleted(tmp_path: Path) -> None:
    path = f"{tmp_path}/d"
    deltalake.write_deltalake(path, ROWS, partition_by=["id"])
    deltalake.DeltaTable(path).delete("id = 2")
    job = _job(f"delta:{path}")

    assert _sorted(_table(job, ["body", "id"])) == [{"body": "a", "id": 1}, {"body": "é", "id": 3}]
    assert _sorted(_table(_job(f"delta:{path}?version=0"))) == ROWS.to_pylist()
    assert check_job(_job(f"delta:{path}", keep=["nope"]))[0].startswith("keep: the source has no")


def test_a_run_reads_the_version_that_it_began_with(tmp_path: Path) -> None:
    path = f"{tmp_path}/d"
    deltalake.write_deltalake(path, pa.table({"id": [1, 1], "body": ["a", "b"]}))
    job, settings = _job(f"delta:{path}"), Settings(runs_url=str(tmp_path / "runs"))
    with Run.open(job, run_key="1", settings=settings) as run, pytest.raises(BatchrouterError):
        run.build()
    deltalake.write_deltalake(path, ROWS.drop_null(), mode="overwrite")

    with Run.open(job, run_key="1", settings=settings) as run:
        with pytest.raises(BatchrouterError, match="a key must stand in one row only"):
            run.build()
        assert run._context.state.source_version == "0"
    with Run.open(job, run_key="2", settings=settings) as run:
        run.build()
        assert (run._context.state.source_version, run._context.manifest.row_count) == ("1", 2)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("delta:{folder}/none", "none cannot be read"),
        ("delta:{folder}?version=9", "cannot be read"),
        ("delta:{folder}?versoin=1", "only ?version=<number> may follow"),
        ("iceberg:{folder}/none.metadata.json", "none.metadata.json cannot be read"),
        ("iceberg:{folder}", "names no Iceberg table"),
        ("iceberg:nowhere.ns.table", "nowhere.ns.table cannot be read"),
    ],
)
def test_a_table_that_is_not_there_is_named(tmp_path: Path, source: str, problem: str) -> None:
    deltalake.write_deltalake(tmp_path / "d", ROWS)

    with pytest.raises(SourceError) as told:
        open_source(_job(source.format(folder=f"{tmp_path}/d")))

    assert problem in str(told.value)


def test_an_iceberg_table_is_read_at_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read at import
    catalog = load_catalog("lake")
    catalog.create_namespace("ns")
    table = catalog.create_table("ns.tickets", ROWS.schema)
    empty = _table(_job("iceberg:lake.ns.tickets"))
    table.append(ROWS)
    first = open_source(_job("iceberg:lake.ns.tickets")).version
    by_metadata = _job(f"iceberg:{table.metadata_location}")
    table.append(MORE)
    job = _job("iceberg:lake.ns.tickets")

    assert (empty.num_rows, empty.schema.names) == (0, ["id", "body"])
    assert _sorted(_table(job, ["body", "id"])) == [
        {"body": row["body"], "id": row["id"]} for row in pa.concat_tables([ROWS, MORE]).to_pylist()
    ]
    assert _sorted(_table(job, version=first)) == ROWS.to_pylist()
    assert _sorted(_table(by_metadata)) == ROWS.to_pylist()
    with pytest.raises(SourceError, match="has no snapshot 7 any more"):
        open_source(job, version="7")
    catalog.close()
