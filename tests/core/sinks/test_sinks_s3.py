"""Lake tables in a bucket, on a real S3 API: one copy, whoever dies or comes at the same time."""

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from core.sinks.kinds import SCHEMA, Kind, Row, identity, rows
from crash.scene import Store, s3_store

LONG = ("replace_run", "overwrite", "merge")
MODES = ["append", *(pytest.param(mode, marks=pytest.mark.drill) for mode in LONG)]
ROWS = 6_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


def _delta(store: Store, root: Path) -> Kind:
    import polars as pl

    place = f"{store.url}/{uuid4().hex}/t"
    options = {**store.env, "AWS_ALLOW_HTTP": "true"}

    def read() -> list[Row]:
        return pl.read_delta(place, storage_options=options).to_dicts()

    return Kind("delta", f"delta:{place}", read, root, options)


def _iceberg(store: Store, root: Path) -> Kind:
    from pyiceberg.catalog.sql import SqlCatalog

    told = {
        "uri": f"sqlite:///{root}/catalog.db",
        "warehouse": f"{store.url}/{uuid4().hex}",
        "s3.endpoint": store.env["AWS_ENDPOINT_URL"],
        "s3.access-key-id": store.env["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": store.env["AWS_SECRET_ACCESS_KEY"],
        "s3.region": store.env["AWS_DEFAULT_REGION"],
    }

    def read() -> list[Row]:
        catalog = SqlCatalog("lake", **told)
        try:
            return catalog.load_table("ns.t").scan().to_arrow().to_pylist()
        finally:
            catalog.close()

    env = {
        "PYICEBERG_CATALOG__LAKE__" + name.upper().replace(".", "__").replace("-", "_"): value
        for name, value in told.items()
    }
    return Kind("iceberg", "iceberg:lake.ns.t", read, root, env)


@pytest.fixture(params=[_delta, _iceberg], ids=["delta", "iceberg"])
def kind(
    request: pytest.FixtureRequest, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kind:
    made: Kind = request.param(store, tmp_path)
    made.enter(monkeypatch)
    return made


@pytest.mark.parametrize("mode", MODES)
def test_a_landing_killed_in_its_commit_is_healed(kind: Kind, mode: str) -> None:
    kind.write(range(100, 300), "before", mode)
    after = {"overwrite": Counter(monday=ROWS), "merge": Counter(monday=ROWS)}.get(
        mode, Counter(before=200, monday=ROWS)
    )

    killed = kind.land(ROWS, "monday", mode, BATCHROUTER_KILL_AT="landing.mid_commit")
    told = killed.communicate(timeout=120)[1]

    assert killed.returncode == -signal.SIGKILL, told
    assert Counter(row["_run_key"] for row in kind.read()) == Counter(before=200)
    for _ in range(2):
        healed = kind.land(ROWS, "monday", mode)
        told = healed.communicate(timeout=120)[1]
        assert healed.returncode == 0, told
        assert Counter(row["_run_key"] for row in kind.read()) == after


def test_two_landings_of_one_run_are_one_copy(kind: Kind) -> None:
    kind.write(range(3), "before", "append")

    def land(_: int) -> None:
        sink = kind.open("append")
        sink.write(rows(range(10, 20), "monday"), SCHEMA, identity("monday"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(land, range(3)))

    assert kind.ids() == [*range(3), *range(10, 20)]


@pytest.mark.parametrize("mode", ["append", "replace_run"])
def test_files_that_are_placed_in_the_bucket_are_one_copy(kind: Kind, mode: str) -> None:
    kind.write(range(3), "before", mode)

    def land(_: int) -> None:
        kind.place(range(10, 20), "monday", mode)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(land, range(3)))

    assert kind.ids() == [*range(3), *range(10, 20)]
