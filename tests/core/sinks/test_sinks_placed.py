"""Files that other processes put into a table: one commit names them, or none is named."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchrouter.landing.sinks.placed import Intake, TakesFiles
from core.sinks.kinds import KINDS, SCHEMA, Kind, identity, rows

ROWS = 6_000
MODES = ("replace_run", "append", "overwrite")


@pytest.fixture(params=["delta", "iceberg"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    found: Kind = KINDS[request.param](tmp_path)
    found.enter(monkeypatch)
    return found


def parquet_files(kind: Kind) -> set[str]:
    """Every data file below the table, named by a commit or not."""
    return {path.name for path in kind.root.rglob("batchrouter-*.parquet")}


def intake_of(kind: Kind, mode: str = "replace_run") -> Intake | None:
    sink = kind.open(mode)
    assert isinstance(sink, TakesFiles)
    return sink.intake(SCHEMA, identity("a"))


@pytest.mark.parametrize("mode", MODES)
def test_placed_files_are_the_rows_that_a_stream_would_be(kind: Kind, mode: str) -> None:
    kind.write(range(5), "old", mode)

    commit = kind.place(range(10, 30), "new", mode)

    kept = [] if mode == "overwrite" else list(range(5))
    assert kind.ids() == [*kept, *range(10, 30)]
    assert commit.rows == 20
    assert commit.bytes > 0
    new = [row for row in kind.read() if row["id"] >= 10]
    assert {row["_job"] for row in new} == {"label it's"}
    assert {row["_run_key"] for row in new} == {"new"}
    assert {row["note"] for row in new} == {f"new {i}" for i in range(10, 30)}


@pytest.mark.parametrize("mode", MODES)
def test_placed_twice_is_one_copy(kind: Kind, mode: str) -> None:
    for _ in range(2):
        kind.place(range(20), "a", mode, again=mode == "replace_run")

    assert kind.ids() == list(range(20))
    # An append that the table knows already leaves no file behind.
    assert len(parquet_files(kind)) == (2 if mode != "replace_run" else 4)


@pytest.mark.parametrize("first", ["write", "place"])
def test_a_run_that_is_bought_anew_replaces_its_files(kind: Kind, first: str) -> None:
    kind.place(range(3), "other")
    getattr(kind, first)(range(20), "a", purchase="one")

    kind.place(range(15, 25), "a", purchase="two", note="anew")

    told = kind.notes()
    assert sorted(told) == [0, 1, 2, *range(15, 25)]
    assert told[16] == "anew 16"


def test_a_file_that_several_runs_share_is_not_dropped(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    kind: Kind = KINDS["delta"](tmp_path)
    kind.place(range(5), "a")
    kind.place(range(10, 15), "b")
    kind.place(range(20, 25), "c")
    DeltaTable(tmp_path / "lake" / "t").optimize.compact()
    before = parquet_files(kind)

    kind.place(range(30, 35), "b", again=True)

    assert kind.ids() == [*range(5), *range(20, 25), *range(30, 35)]
    # Their rows went in by the table's own writer, and the placed files are gone.
    assert parquet_files(kind) == before


def test_delta_knows_counts_and_bounds_of_placed_files(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    kind: Kind = KINDS["delta"](tmp_path)
    kind.place(range(7, 20), "a", files=1)

    table = DeltaTable(tmp_path / "lake" / "t")
    (file,) = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert file["num_records"] == 13
    assert (file["min.id"], file["max.id"], file["null_count.id"]) == (7, 19, 0)
    assert file["min._run_key"] == file["max._run_key"] == "a"
    assert file["size_bytes"] == (tmp_path / "lake" / "t" / file["path"]).stat().st_size
    assert [each["batchrouter.run_key"] for each in table.history(1)] == ["a"]


@pytest.mark.parametrize(
    "how",
    [
        {"partition_by": ["_run_key"]},
        {"configuration": {"delta.columnMapping.mode": "name", "delta.minWriterVersion": "5"}},
        {"configuration": {"delta.enableDeletionVectors": "true"}},
    ],
)
def test_a_delta_table_that_asks_more_of_a_file_gets_rows(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    from deltalake import DeltaTable

    kind: Kind = KINDS["delta"](tmp_path)
    DeltaTable.create(tmp_path / "lake" / "t", SCHEMA.append(pa.field("_job", pa.string())), **how)

    assert intake_of(kind) is None


def test_a_delta_table_with_a_constraint_gets_rows(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    kind: Kind = KINDS["delta"](tmp_path)
    kind.write(range(3), "a")
    DeltaTable(tmp_path / "lake" / "t").alter.add_constraint({"small": "id < 100"})

    assert intake_of(kind) is None


def test_an_iceberg_table_with_partitions_gets_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.catalog import load_catalog

    kind: Kind = KINDS["iceberg"](tmp_path)
    kind.enter(monkeypatch)
    kind.write(range(3), "a")
    with load_catalog("lake").load_table("ns.t").update_spec() as spec:
        spec.add_identity("_status")

    assert intake_of(kind) is None


def test_a_merge_and_a_database_get_rows(kind: Kind, tmp_path: Path) -> None:
    assert intake_of(kind, "merge") is None
    assert intake_of(KINDS["duckdb"](tmp_path)) is None


def test_rows_that_fail_leave_no_file_and_no_change(kind: Kind) -> None:
    kind.place(range(5), "old")
    before = parquet_files(kind)
    intake = intake_of(kind)
    assert intake is not None

    def failing() -> Iterator[pa.RecordBatch]:
        yield from rows(range(5), "a")
        raise RuntimeError("the counts do not add up")

    with pytest.raises(RuntimeError, match="do not add up"):
        intake.place("a", failing())

    assert parquet_files(kind) == before
    assert kind.ids() == list(range(5))


def test_a_part_without_rows_leaves_no_file(kind: Kind) -> None:
    assert kind.place([1], "a", files=2).rows == 1

    assert kind.ids() == [1]
    assert len(parquet_files(kind)) == 1


def test_a_new_column_is_added_where_the_table_may_evolve(kind: Kind) -> None:
    kind.write(range(3), "a")
    wider = SCHEMA.append(pa.field("urgent", pa.bool_()))
    sink = kind.open(evolve=True)
    assert isinstance(sink, TakesFiles)
    intake = sink.intake(wider, identity("b"))
    assert intake is not None
    batches = (
        pa.RecordBatch.from_arrays([*each.columns, pa.array([True] * len(each))], schema=wider)
        for each in rows(range(10, 12), "b")
    )

    sink.commit_files([intake.place("b", batches)], intake, wider, identity("b"))

    assert {row["id"]: row["urgent"] for row in kind.read()} == {
        0: None, 1: None, 2: None, 10: True, 11: True,
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "point", ["landing.mid_write", "landing.mid_commit", "landing.after_commit"]
)
def test_a_commit_of_files_killed_at_a_point_is_healed(kind: Kind, point: str, mode: str) -> None:
    kind.write(range(100, 300), "before", mode)
    landed = Counter(monday=ROWS) if mode == "overwrite" else Counter(before=200, monday=ROWS)
    after = landed if point == "landing.after_commit" else Counter(before=200)

    killed = kind.land(ROWS, "monday", mode, is_placed=True, BATCHROUTER_KILL_AT=point)
    told = killed.communicate(timeout=120)[1]

    assert killed.returncode == -signal.SIGKILL, told
    assert Counter(row["_run_key"] for row in kind.read()) == after
    healed = kind.land(ROWS, "monday", mode, is_placed=True)
    told = healed.communicate(timeout=120)[1]
    assert healed.returncode == 0, told
    assert Counter(row["_run_key"] for row in kind.read()) == landed


def at_once(work: Callable[[str], object], *each: str) -> None:
    """Do work in threads that begin together; what one of them raises goes through."""
    together = threading.Barrier(len(each))

    def run(one: str) -> None:
        together.wait(30)
        work(one)

    with ThreadPoolExecutor(len(each)) as pool:
        list(pool.map(run, each, timeout=120))


@pytest.mark.parametrize("mode", ["replace_run", "append"])
def test_two_at_a_time_of_one_purchase_are_one_copy(kind: Kind, mode: str) -> None:
    kind.place(range(100, 102), "before", mode)

    at_once(lambda run: kind.place(range(50), run, mode), "a", "a")

    assert kind.ids() == [*range(50), 100, 101]


def test_two_purchases_of_one_run_at_a_time_leave_one(kind: Kind) -> None:
    kind.place(range(100, 102), "before")

    at_once(lambda told: kind.place(range(50), "a", purchase=told, note=told), "one", "two")

    assert kind.ids() == [*range(50), 100, 101]
    notes = {kind.notes()[i].split()[0] for i in range(50)}
    assert notes in ({"one"}, {"two"})
