"""A whole run on Spark, from a real router: the table is that of a run on one machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter import Run
from batchrouter.spark import land
from batchrouter.testing import FaultProxy, RunningRouter, running_router
from on_spark.tables import files_in, job_of, landed, tickets

pytestmark = pytest.mark.xdist_group("spark")
ROWS = 1_500
Lake = tuple[str, Callable[[], tuple[pa.Table, int]]]
"""A sink, and what another library reads from it: rows and how many files."""

COUNTED = ("row_count", "input_tokens", "output_tokens", "error_codes")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.parquet"
    pq.write_table(tickets(ROWS), path)
    return path


def run_of(job: Any, router: RunningRouter, folder: Path, key: str = "2026-11-22") -> Run:
    settings = router.settings(runs_url=str(folder / "runs"))
    return Run.open(job, run_key=key, settings=settings)


def test_a_run_of_a_frame_lands_the_rows_of_a_run_on_one_machine(
    spark: Any, router: RunningRouter, source: Path, tmp_path: Path
) -> None:
    frame = spark.read.parquet(str(source)).repartition(3, "ticket_id")
    with run_of(job_of(str(source), sink=str(tmp_path / "here")), router, tmp_path, "one") as run:
        here = run.execute(timeout_s=300)

    with run_of(job_of(frame, sink=str(tmp_path / "there")), router, tmp_path, "two") as run:
        there = run.execute(timeout_s=300)
        folder = Path(run.folder_url)

    dropped = ["_run_key"]
    assert landed(tmp_path / "there").drop_columns(dropped) == landed(
        tmp_path / "here"
    ).drop_columns(dropped)
    assert there.rows == here.rows
    assert [getattr(there, each) for each in COUNTED] == [getattr(here, each) for each in COUNTED]
    assert there.row_count == ROWS
    assert there.batch_count == 3
    assert files_in(folder / "landed") == set()
    # The driver names its copies by the part.
    copies = files_in(folder / "artifact")
    assert len(copies) == 3
    assert not any("part-" in name for name in copies)


def _delta(folder: Path) -> Lake:
    from deltalake import DeltaTable

    def read() -> tuple[pa.Table, int]:
        table = DeltaTable(folder / "lake")
        return pa.table(table.to_pyarrow_table()), len(table.file_uris())

    return f"delta:{folder / 'lake'}", read


def _iceberg(folder: Path) -> Lake:
    from pyiceberg.catalog import load_catalog

    def read() -> tuple[pa.Table, int]:
        table = load_catalog("lake").load_table("ns.labelled")
        return table.scan().to_arrow(), len(list(table.scan().plan_files()))

    return "iceberg:lake.ns.labelled", read


@pytest.fixture(params=[_delta, _iceberg], ids=["delta", "iceberg"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    from pyiceberg.utils.config import Config

    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read at import
    made: Lake = request.param(tmp_path)
    return made


def test_executors_write_the_files_of_a_table_and_one_commit_names_them(
    spark: Any, router: RunningRouter, source: Path, tmp_path: Path, lake: Lake
) -> None:
    sink, read = lake
    frame = spark.read.parquet(str(source)).repartition(3, "ticket_id")
    with run_of(job_of(str(source), sink=str(tmp_path / "here")), router, tmp_path, "one") as run:
        here = run.execute(timeout_s=300)

    with run_of(job_of(frame, sink=sink), router, tmp_path, "two") as run:
        first = run.execute(timeout_s=300)
        again = land(spark, run, again=True)

    rows, files = read()
    assert files == 3
    assert first.rows == again.rows == here.rows
    names = ["shop", "ticket_id", "at", "amount", "intent", "_status", "_request_hash"]
    order = [("shop", "ascending"), ("ticket_id", "ascending")]
    ours = landed(tmp_path / "here").select(names).sort_by(order)
    theirs = rows.select(names).cast(ours.schema).sort_by(order)
    assert theirs.to_pylist() == ours.to_pylist()
    assert rows.num_rows == ROWS


def test_a_job_that_says_spark_lands_twice_to_the_same_table(
    spark: Any, router: RunningRouter, source: Path, tmp_path: Path
) -> None:
    spark.read.parquet(str(source)).createOrReplaceTempView("tickets")
    job = job_of("table:tickets", engine="spark", sink=str(tmp_path / "labelled"))
    with run_of(job, router, tmp_path) as run:
        first = run.execute(timeout_s=300)
        before = landed(tmp_path / "labelled")

        again = land(spark, run, again=True)

    assert landed(tmp_path / "labelled") == before
    assert again.rows == first.rows
    assert again.rows["skipped"] == len([row for row in range(ROWS) if row % 97 == 3])


def test_an_artifact_whose_url_is_refused_to_the_executors_comes_by_the_driver(
    spark: Any, source: Path, tmp_path: Path
) -> None:
    frame = spark.read.parquet(str(source)).repartition(3, "ticket_id")
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy())
        router = stack.enter_context(running_router(tmp_path / "router", public_url=proxy.base_url))
        proxy.upstream = router.base_url
        refusal = proxy.answer("GET", "/artifacts/*", status=403)

        with run_of(job_of(frame, sink=str(tmp_path / "labelled")), router, tmp_path) as run:
            receipt = run.execute(timeout_s=300)
            copies = files_in(Path(run.folder_url) / "artifact")

    assert refusal.matched == 4
    assert len([name for name in copies if "part-" in name]) == 1
    assert len(copies) == 3
    assert receipt.row_count == landed(tmp_path / "labelled").num_rows == ROWS
