"""What holds for every kind of table: once a purchase, all or none, and no column by accident."""

import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from batchrouter.errors import LandingError, SinkError
from core.sinks.kinds import SCHEMA, Kind, identity, rows

MODES = ["replace_run", "append", "overwrite", "merge"]


@pytest.mark.parametrize("mode", MODES)
def test_landed_twice_is_one_copy(kind: Kind, mode: str) -> None:
    first = kind.write(range(5), "monday", mode)
    kind.write(range(5), "monday", mode)

    assert kind.ids() == [0, 1, 2, 3, 4]
    assert first.rows == 5
    assert first.bytes > 0
    assert {row["_job"] for row in kind.read()} == {"label it's"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("replace_run", [1, 2, 2, 3]), ("append", [1, 2, 2, 3]), ("overwrite", [2, 3]),
        ("merge", [1, 2, 3]),
    ],
)  # fmt: skip
def test_another_run_lands_as_the_mode_says(kind: Kind, mode: str, expected: list[int]) -> None:
    kind.write([1, 2], "monday", mode)
    kind.write([2, 3], "tuesday", mode)

    assert kind.ids() == expected
    assert kind.notes()[2] in {"tuesday 2"} | ({"monday 2"} if len(expected) == 4 else set())


@pytest.mark.parametrize(("mode", "expected"), [
    ("replace_run", ["new 1", "new 2"]), ("append", ["new 1", "new 2", "old 1", "old 2", "old 3"]),
    ("overwrite", ["new 1", "new 2"]), ("merge", ["new 1", "new 2", "old 3"]),
])  # fmt: skip
def test_a_run_that_is_bought_anew(kind: Kind, mode: str, expected: list[str]) -> None:
    kind.write([1, 2, 3], "monday", mode, purchase="first", note="old")
    kind.write([1, 2], "monday", mode, purchase="second", note="new")

    assert sorted(row["note"] for row in kind.read()) == expected


@pytest.mark.parametrize(("mode", "expected"), [
    ("append", [1, 2, 2, 3]), ("overwrite", [2, 3]), ("merge", [1, 2, 3]),
])  # fmt: skip
def test_a_late_landing_of_what_is_landed_undoes_nothing(
    kind: Kind, mode: str, expected: list[int]
) -> None:
    kind.write([1, 2], "monday", mode)
    kind.write([2, 3], "tuesday", mode)

    kind.write([1, 2], "monday", mode)

    assert kind.ids() == expected
    if mode == "merge":
        assert kind.notes() == {1: "monday 1", 2: "tuesday 2", 3: "tuesday 3"}
        kind.write([1, 2], "monday", mode, again=True)
        assert kind.notes() == {1: "monday 1", 2: "monday 2", 3: "tuesday 3"}


def test_replace_run_leaves_other_jobs_and_runs_alone(kind: Kind) -> None:
    kind.write([1, 2], "monday")
    other = identity("monday")
    other = type(other)("another job", other.run_key, other.run_slug, "theirs")
    kind.open().write(rows([7], "monday"), SCHEMA, other)

    kind.write([4], "monday", purchase="anew")

    assert kind.ids() == [4, 7]


@pytest.mark.parametrize("mode", MODES)
def test_a_landing_that_fails_in_the_middle_changes_nothing(kind: Kind, mode: str) -> None:
    kind.write([1], "monday", mode)

    def broken() -> Iterator[pa.RecordBatch]:
        yield from rows([2], "tuesday")
        raise LandingError("the counts do not add up")

    with pytest.raises(LandingError, match="add up"):
        kind.open(mode).write(broken(), SCHEMA, identity("tuesday"))

    assert kind.ids() == [1]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_without_rows_is_a_commit_too(kind: Kind, mode: str) -> None:
    kind.write([], "monday", mode)

    assert kind.ids() == []
    assert kind.open().current_schema(identity("x")) is not None


def test_other_columns_are_refused_or_evolved(kind: Kind) -> None:
    kind.write([1], "monday")
    more = SCHEMA.append(pa.field("score", pa.float64())).remove(SCHEMA.get_field_index("note"))
    scored = next(rows([2], "tuesday")).append_column("score", pa.array([0.5])).select(more.names)

    for act in (
        lambda: kind.open().check(more, identity("tuesday")),
        lambda: kind.open().write(iter([scored]), more, identity("tuesday")),
    ):
        with pytest.raises(SinkError) as caught:
            act()
        assert "note (string) is only in the table; score (double) is new" in str(caught.value)
        assert "evolve: true" in str(caught.value)
    assert kind.ids() == [1]

    kind.open(evolve=True).check(more, identity("tuesday"))
    kind.open(evolve=True).write(iter([scored]), more, identity("tuesday"))
    kind.open("merge", evolve=True).write(iter([scored]), more, identity("wednesday"))

    told = sorted(((r["id"], r["note"], r["score"]) for r in kind.read()), key=str)
    assert told == [(1, "monday 1", None), (2, None, 0.5)]


def test_another_type_is_refused_even_when_it_may_evolve(kind: Kind) -> None:
    kind.write([1], "monday")
    text = SCHEMA.set(0, pa.field("id", pa.string()))

    with pytest.raises(
        SinkError, match=r"id is int64 in the table and string now.*the type of none"
    ):
        kind.open(evolve=True).check(text, identity("tuesday"))


def test_what_succeeded_is_told_of_all_runs(kind: Kind) -> None:
    assert list(kind.open("merge").succeeded(identity("x"), ["id"])) == []
    kind.write([1, 2], "monday", "merge")
    kind.write([3], "tuesday", "merge", status="failed")

    told = pa.Table.from_batches(kind.open("merge").succeeded(identity("x"), ["id"]))

    assert told.column_names == ["id", "_request_hash"]
    assert sorted(told.to_pylist(), key=lambda row: row["id"]) == [
        {"id": 1, "_request_hash": "1-1"},
        {"id": 2, "_request_hash": "1-2"},
    ]


@pytest.mark.parametrize("mode", MODES)
def test_every_type_lands_and_stays_the_same(kind: Kind, mode: str) -> None:
    kinds: dict[str, tuple[Any, list[Any]]] = {
        "i8": (pa.int8(), [-1, None]),
        "u64": (pa.uint64(), [2**64 - 1, None]),
        "f16": (pa.float16(), [1.5, None]),
        "b": (pa.bool_(), [True, None]),
        "bin": (pa.binary(), [b"\x00\xff", None]),
        "day": (pa.date32(), [20000, None]),
        "ns": (pa.timestamp("ns"), [1_700_000_000_123_456_789, None]),
        "zoned": (pa.timestamp("s", "Europe/Berlin"), [1_700_000_000, None]),
        "time": (pa.time64("us"), [1, None]),
        "dec": (pa.decimal128(10, 2), ["1.25", None]),
        "cat": (pa.dictionary(pa.int8(), pa.string()), ["x", None]),
        "vector": (pa.list_(pa.float32(), 3), [[1.0, 2.0, 3.0], None]),
        "tags": (pa.list_(pa.large_string()), [["a\"'é", None], None]),
        "nested": (pa.struct([("a", pa.list_(pa.struct([("b", pa.uint16())])))]),
                   [{"a": [{"b": 7}]}, None]),
        "map": (pa.map_(pa.string(), pa.int32()), [[("k", 1)], None]),
        "nothing": (pa.null(), [None, None]),
        'a "quoted" é': (pa.string(), ["it's \\N \t\n", None]),
    }  # fmt: skip
    arrays = [
        pa.array(values, pa.string()).cast(each) if name == "dec" else pa.array(values, each)
        for name, (each, values) in kinds.items()
    ]
    fields = [pa.field(name, each) for name, (each, _) in kinds.items()]
    schema = pa.schema([*SCHEMA, *fields])
    sink = kind.open(mode)

    for run in ("monday", "tuesday"):
        base = next(rows([1, 2], run))
        batch = pa.RecordBatch.from_arrays([*base.columns, *arrays], schema=schema)
        sink.check(schema, identity(run))
        sink.write(iter([batch]), schema, identity(run))

    full = next(row for row in kind.read() if row["id"] == 1)
    empty = next(row for row in kind.read() if row["id"] == 2)
    assert int(full["u64"]) == 2**64 - 1
    assert full["i8"] == -1
    assert float(full["f16"]) == 1.5
    assert full["time"] == "00:00:00.000001"
    assert full['a "quoted" é'] == "it's \\N \t\n"
    assert "2023-11-14" in str(full["ns"])
    assert "22:13:20.123456" in str(full["ns"])
    assert "22:13:20" in str(full["zoned"]) or "23:13:20" in str(full["zoned"])
    assert all(empty[name] is None for name in kinds)


def test_a_type_that_no_table_has_is_refused_before_anything_is_bought(kind: Kind) -> None:
    schema = SCHEMA.append(pa.field("took", pa.duration("s")))

    with pytest.raises(SinkError, match=r"no type for the column 'took'.*out of `keep`"):
        kind.open().check(schema, identity("monday"))


def test_two_landings_at_a_time_are_one_copy(kind: Kind) -> None:
    kind.write([100], "before", "append")
    both_write = threading.Barrier(2)
    failures: list[BaseException] = []

    def land() -> None:
        def told() -> Iterator[pa.RecordBatch]:
            yield from rows(range(3), "monday")
            both_write.wait(30)

        try:
            kind.open("append").write(told(), SCHEMA, identity("monday"))
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=land) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert kind.ids() == [0, 1, 2, 100]


def test_different_runs_at_a_time_all_land(kind: Kind) -> None:
    kind.write([100], "before")
    failures: list[BaseException] = []

    def land(number: int) -> None:
        try:
            kind.write([number], f"run {number}")
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=land, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert kind.ids() == [0, 1, 2, 3, 100]
