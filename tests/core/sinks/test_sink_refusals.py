"""What a table cannot take, or cannot be asked: it is told at once, without a secret, undone."""

import socket
import sys
import traceback
from contextlib import closing
from pathlib import Path

import pytest

from batchrouter.errors import MissingExtraError, SinkError
from batchrouter.landing.sinks import Writing, open_sink
from core.sinks.kinds import SCHEMA, Kind, identity, rows
from crash.disk import Disk

PASSWORD = "canary-of-the-password"


def everything_told(error: BaseException) -> str:
    """What a log shows of an error: its text, its chain, and the source lines between."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("delta:lake/t", "deltalake", "delta"),
        ("iceberg:lake.ns.t", "pyiceberg.catalog", "iceberg"),
        ("duckdb:t.duckdb#t", "duckdb", "tables"),
        ("postgresql:here#t", "adbc_driver_postgresql.dbapi", "postgres"),
        ("sqlite:here#t", "adbc_driver_sqlite.dbapi", "sqlite"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    url: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, missing.partition(".")[0], None)
    monkeypatch.setenv(
        "BATCHROUTER_CONNECTION_HERE",
        "sqlite:///t.db" if url.startswith("sqlite") else "postgresql://localhost/t",
    )

    with pytest.raises(MissingExtraError) as told:
        open_sink(url, None, Writing("append", ("id",))).check(SCHEMA, identity("monday"))

    assert f"pip install 'batchrouter-core[{extra}]'" in str(told.value)


def test_a_server_that_refuses_is_named_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))  # bound, and nobody listens
        port = bound.getsockname()[1]
        monkeypatch.setenv(
            "BATCHROUTER_CONNECTION_HERE", f"postgresql://ada:{PASSWORD}@127.0.0.1:{port}/lake"
        )
        sink = open_sink("postgresql:here#t", None, Writing("append", ("id",)))

        with pytest.raises(SinkError) as told:
            sink.check(SCHEMA, identity("monday"))

    assert "the table postgresql:here#t" in str(told.value)
    assert "refused" in str(told.value)
    assert PASSWORD not in everything_told(told.value)
    assert PASSWORD not in repr(sink)


def test_a_store_that_refuses_is_named_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        options = {
            "key": "canary-of-the-key",
            "secret": PASSWORD,
            "endpoint_url": f"http://127.0.0.1:{bound.getsockname()[1]}",
            "client_kwargs": {"region_name": "us-east-1"},
            "aws_max_retries": "0",
        }
        sink = open_sink("delta:s3://lake/t", options, Writing("append", ("id",)))

        with pytest.raises(SinkError) as told:
            sink.check(SCHEMA, identity("monday"))

    assert "the table delta:s3://lake/t" in str(told.value)
    assert PASSWORD not in everything_told(told.value)
    assert "canary-of-the-key" not in everything_told(told.value)
    assert PASSWORD not in repr(sink)


def test_a_disk_that_is_full_where_rows_wait_changes_no_table(kind: Kind, disk: Disk) -> None:
    kind.write(range(100, 110), "before", "append")
    disk.mount("16k")

    landing = kind.land(6_000, "monday", "append", TMPDIR=str(disk.root))
    told = landing.communicate(timeout=120)[1]

    assert landing.returncode == 1, told
    last = told.strip().splitlines()[-1]
    assert "SinkError: the rows cannot be written to" in last
    assert "No space left on device" in last
    assert "set TMPDIR" in last
    assert kind.ids() == list(range(100, 110))
    assert list(disk.root.iterdir()) == []
    healed = kind.land(6_000, "monday", "append")
    told = healed.communicate(timeout=120)[1]
    assert healed.returncode == 0, told
    assert len(kind.ids()) == 10 + 6_000


def test_a_table_on_a_full_disk_is_as_it_was(tmp_path: Path, disk: Disk) -> None:
    """The rows waited elsewhere; the table's own disk fills in the commit."""
    import polars as pl

    disk.mount("256k")
    place = disk.root / "t"
    sink = open_sink(f"delta:{place}", None, Writing("append", ("id",)))
    sink.write(rows(range(10), "before"), SCHEMA, identity("before"))
    disk.fill()

    with pytest.raises(SinkError, match="cannot be written"):
        sink.write(rows(range(10, 30_000), "monday"), SCHEMA, identity("monday"))

    disk.free()
    assert pl.read_delta(str(place)).height == 10
