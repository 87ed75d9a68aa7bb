"""Every kind of table that is committed to, each with a reader that is not ours."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import Commit, Sink, Writing, open_sink
from batchrouter.landing.sinks.placed import TakesFiles

Row = dict[str, Any]
LAND = Path(__file__).with_name("land.py")

SCHEMA = pa.schema([
    ("id", pa.int64()),
    ("note", pa.string()),
    ("_status", pa.string()),
    ("_cost_usd", pa.decimal128(38, 12)),
    ("_run_key", pa.string()),
    ("_request_hash", pa.string()),
    ("_completed_at", pa.timestamp("us", "UTC")),
])


def identity(run: str, *, purchase: str = "", again: bool = False) -> LandingIdentity:
    return LandingIdentity(
        "label it's", run, f"{run}-0a1b", purchase or f"bought for {run}", again, "model-1"
    )


def rows(
    ids: Any, run: str, *, note: str = "", status: str = "succeeded"
) -> Iterator[pa.RecordBatch]:
    told = [
        {"id": i, "note": f"{note or run} {i}", "_status": status, "_cost_usd": None,
         "_run_key": run, "_request_hash": f"1-{i}", "_completed_at": None}
        for i in ids
    ]  # fmt: skip
    yield from pa.Table.from_pylist(told, schema=SCHEMA).to_batches(1000)


@dataclass
class Kind:
    """One kind of table, in a place of its own.

    Attributes:
        url: The sink of a job.
        read: Reads all rows by another library.
        env: What a process needs to reach it.
    """

    name: str
    url: str
    read: Callable[[], list[Row]]
    root: Path
    env: dict[str, str] = field(default_factory=dict[str, str])

    def open(self, mode: str = "replace_run", *, evolve: bool = False) -> Sink:
        return open_sink(self.url, None, Writing(mode, ("id",), evolve))  # type: ignore[arg-type]

    def write(
        self, ids: Any, run: str, mode: str = "replace_run", *, again: bool = False,
        purchase: str = "", **how: Any,
    ) -> Commit:  # fmt: skip
        told = rows(ids, run, **how)
        return self.open(mode).write(told, SCHEMA, identity(run, again=again, purchase=purchase))

    def place(
        self, ids: Any, run: str, mode: str = "replace_run", *, again: bool = False,
        purchase: str = "", files: int = 2, **how: Any,
    ) -> Commit:  # fmt: skip
        """As `write`, by files that are put into the table first, as other processes do."""
        sink, who = self.open(mode), identity(run, again=again, purchase=purchase)
        assert isinstance(sink, TakesFiles)
        intake = sink.intake(SCHEMA, who)
        assert intake is not None
        intake = pickle.loads(pickle.dumps(intake))
        placed = [
            intake.place(uuid4().hex, rows(list(ids)[at::files], run, **how)) for at in range(files)
        ]
        return sink.commit_files(placed, intake, SCHEMA, who)

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process reach the table, too."""
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        if self.name == "iceberg":
            from pyiceberg.utils.config import Config

            monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read at import

    def ids(self) -> list[int]:
        return sorted(row["id"] for row in self.read())

    def notes(self) -> dict[int, str]:
        return {row["id"]: row["note"] for row in self.read()}

    def land(
        self, ids: int, run: str, mode: str, *, is_placed: bool = False, **points: str
    ) -> subprocess.Popen[str]:
        """Land in a process of its own, which may die."""
        return subprocess.Popen(
            [sys.executable, LAND, json.dumps([self.url, mode, ids, run, is_placed])],
            env={**os.environ, **self.env, **points}, stderr=subprocess.PIPE, text=True,
            cwd=self.root,
        )  # fmt: skip


def _delta(root: Path) -> Kind:
    import polars as pl

    place = root / "lake" / "t"
    return Kind("delta", f"delta:{place}", lambda: pl.read_delta(str(place)).to_dicts(), root)


def _duckdb(root: Path) -> Kind:
    import duckdb

    def read() -> list[Row]:
        with duckdb.connect(root / "t.duckdb") as connection:
            try:
                return connection.sql("select * from t").to_arrow_table().to_pylist()
            except duckdb.CatalogException:
                return []

    return Kind("duckdb", f"duckdb:{root / 't.duckdb'}#t", read, root)


def _sqlite(root: Path) -> Kind:
    import sqlite3

    with closing(sqlite3.connect(root / "t.db")) as made:
        made.execute("create table theirs (x)")

    def read() -> list[Row]:
        with closing(sqlite3.connect(root / "t.db", timeout=60)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("select * from t")]

    env = {"BATCHROUTER_CONNECTION_HERE": f"sqlite:///{root}/t.db"}
    return Kind("sqlite", "sqlite:here#t", read, root, env)


def _postgresql(root: Path, url: str) -> Kind:
    import psycopg
    from psycopg.rows import dict_row

    table = f"t_{uuid4().hex}"

    def read() -> list[Row]:
        with psycopg.connect(url, row_factory=dict_row) as connection:
            return connection.execute(f"select * from {table}").fetchall()  # type: ignore[call-overload]

    env = {"BATCHROUTER_CONNECTION_HERE": url}
    return Kind("postgresql", f"postgresql:here#public.{table}", read, root, env)


def _iceberg(root: Path) -> Kind:
    import polars as pl
    from pyiceberg.catalog.sql import SqlCatalog

    told = {"uri": f"sqlite:///{root}/catalog.db", "warehouse": f"file://{root}/warehouse"}

    def read() -> list[Row]:
        catalog = SqlCatalog("lake", **told)
        try:
            return pl.scan_iceberg(catalog.load_table("ns.t")).collect().to_dicts()
        finally:
            catalog.close()

    env = {f"PYICEBERG_CATALOG__LAKE__{name.upper()}": value for name, value in told.items()}
    env["POLARS_ICEBERG_PLANNER"] = "pyiceberg"  # the other one is a package that is not here
    return Kind("iceberg", "iceberg:lake.ns.t", read, root, env)


KINDS: dict[str, Callable[..., Kind]] = {
    "delta": _delta,
    "duckdb": _duckdb,
    "iceberg": _iceberg,
    "postgresql": _postgresql,
    "sqlite": _sqlite,
}
