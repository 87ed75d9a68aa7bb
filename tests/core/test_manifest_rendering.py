"""Each Arrow type has one text, the same for arrays, chunks, slices and nested values."""

import datetime as dt
import decimal
import json
import uuid
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.manifest.rendering import (
    UnrenderableError,
    plain_type,
    rendered,
    rendering_problem,
)

_UTC = dt.UTC
_SECOND = dt.datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001 - a time without a zone is the case
_MS = _SECOND.replace(microsecond=250_000)

CASES: list[tuple[Any, pa.DataType, str]] = [
    ("a{b}", pa.string(), "a{b}"),
    ("a", pa.large_string(), "a"),
    ("a", pa.string_view(), "a"),
    ("a", pa.dictionary(pa.int8(), pa.string()), "a"),
    (7, pa.dictionary(pa.int8(), pa.int64()), "7"),
    (True, pa.bool_(), "true"),
    (-128, pa.int8(), "-128"),
    (2**64 - 1, pa.uint64(), "18446744073709551615"),
    (1.0, pa.float64(), "1.0"),
    (0.1, pa.float64(), "0.1"),
    (0.1, pa.float32(), "0.1"),
    (1e16, pa.float64(), "1e+16"),
    (1.5, pa.float16(), "1.5"),
    (float("nan"), pa.float64(), "NaN"),
    (float("-inf"), pa.float32(), "-Infinity"),
    (decimal.Decimal("12.30"), pa.decimal128(10, 2), "12.30"),
    (decimal.Decimal("0.0000001"), pa.decimal128(10, 7), "0.0000001"),
    (decimal.Decimal("1E+3"), pa.decimal128(5, -3), "1000"),
    (dt.date(2024, 1, 2), pa.date32(), "2024-01-02"),
    (dt.date(2024, 1, 2), pa.date64(), "2024-01-02"),
    (dt.time(3, 4, 5), pa.time32("s"), "03:04:05"),
    (dt.time(3, 4, 5, 250_000), pa.time64("us"), "03:04:05.25"),
    (_SECOND, pa.timestamp("s"), "2024-01-02T03:04:05"),
    (_SECOND, pa.timestamp("ns"), "2024-01-02T03:04:05"),
    (_MS, pa.timestamp("us"), "2024-01-02T03:04:05.25"),
    (_MS.replace(tzinfo=_UTC), pa.timestamp("us", "Europe/Paris"), "2024-01-02T03:04:05.25Z"),
    (1, pa.timestamp("ns"), "1970-01-01T00:00:00.000000001"),
    ([1, None], pa.list_(pa.int64()), "[1,null]"),
    (["é", '"'], pa.large_list(pa.string()), '["é","\\""]'),
    ([1, 2], pa.list_(pa.int8(), 2), "[1,2]"),
    ([], pa.list_(pa.int8()), "[]"),
    ({"a": 1, "b": None}, pa.struct([("a", pa.int8()), ("b", pa.string())]), '{"a":1,"b":null}'),
    ([("k", 1.5)], pa.map_(pa.string(), pa.float64()), '{"k":1.5}'),
    ([(1, "v")], pa.map_(pa.int8(), pa.string()), '{"1":"v"}'),
    (
        [{"d": dt.date(2024, 1, 2)}],
        pa.list_(pa.struct([("d", pa.date32())])),
        '[{"d":"2024-01-02"}]',
    ),
    ([decimal.Decimal("1.50")], pa.list_(pa.decimal128(5, 2)), "[1.50]"),
]


@pytest.mark.parametrize(
    ("value", "kind", "text"), CASES, ids=[str(case[1]) + case[2] for case in CASES]
)
def test_the_table_holds(value: Any, kind: pa.DataType, text: str) -> None:
    array = (
        pa.array([value, None, value], pa.int64()).cast(kind)
        if isinstance(value, int) and pa.types.is_timestamp(kind)
        else pa.array([value, None, value], kind)
    )

    assert rendered(array).to_pylist() == [text, None, text]
    assert rendered(array.slice(1)).to_pylist() == [None, text]
    assert rendered(array.slice(0, 0)).to_pylist() == []
    assert rendering_problem(kind) is None


ZONES = (None, "UTC", "+05:30", "Europe/Paris", "America/St_Johns", "Asia/Kolkata")
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("unit", TICKS)
@pytest.mark.parametrize("second", [0, -1, 1_711_846_799, 951_782_399, -9_000_000_000])
def test_a_timestamp_of_any_unit_and_zone_is_its_utc_time(
    unit: str, zone: str | None, second: int
) -> None:
    array = pa.array([second * TICKS[unit], None], pa.int64()).cast(pa.timestamp(unit, zone))
    epoch = dt.datetime(1970, 1, 1, tzinfo=_UTC)
    plain = (epoch + dt.timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")

    assert rendered(array).to_pylist() == [plain + ("Z" if zone else ""), None]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_fraction_has_as_many_digits_as_it_needs(unit: str) -> None:
    ticks = TICKS[unit]
    values = pa.array([ticks // 10, -ticks // 10, 1], pa.int64()).cast(pa.timestamp(unit, "UTC"))

    smallest = f"{1 / ticks:.9f}"[1:].rstrip("0")
    assert rendered(values).to_pylist() == [
        "1970-01-01T00:00:00.1Z",
        "1969-12-31T23:59:59.9Z",
        f"1970-01-01T00:00:00{smallest}Z",
    ]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**62, pa.timestamp("s")),
        (-(2**62), pa.timestamp("ms", "UTC")),
        (2**31 - 1, pa.date32()),
        (2**31 - 1, pa.time32("s")),
    ],
    ids=str,
)
def test_a_time_that_no_calendar_has_is_refused(value: int, kind: pa.DataType) -> None:
    number = pa.array([0, value], pa.int64() if kind.bit_width == 64 else pa.int32())
    array = pa.Array.from_buffers(kind, 2, number.buffers())

    with pytest.raises(UnrenderableError, match=f"{value} is no time of the calendar"):
        rendered(array)
    with pytest.raises(UnrenderableError, match="calendar"):
        rendered(pa.StructArray.from_arrays([array], ["a"]))


def test_uuids_and_json_extensions_are_rendered() -> None:
    one = uuid.UUID("12345678-1234-5678-1234-567812345678")

    assert rendered(pa.array([one.bytes, None], pa.uuid())).to_pylist() == [str(one), None]
    assert rendered(pa.array(['{"a":1}'], pa.json_())).to_pylist() == ['{"a":1}']


def test_a_column_of_nulls_stays_null() -> None:
    assert rendered(pa.nulls(2)).to_pylist() == [None, None]


def test_nested_slices_keep_their_place() -> None:
    array = pa.array([[0], [1, 2], None, [], [3]], pa.list_(pa.int64()))
    structs = pa.array([{"a": [n]} for n in range(5)], pa.struct([("a", pa.list_(pa.int64()))]))

    assert rendered(array.slice(1, 4)).to_pylist() == ["[1,2]", None, "[]", "[3]"]
    assert rendered(structs.slice(2, 2)).to_pylist() == ['{"a":[2]}', '{"a":[3]}']
    assert rendered(
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)).slice(1)
    ).to_pylist() == [None, "[3,4]"]
    maps = pa.array([[("a", 1)], None, [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int8()))
    assert rendered(maps.slice(1)).to_pylist() == [None, '{"b":2,"c":3}']


def test_nested_text_reads_back_as_json() -> None:
    rows = [{"a": '\n"é', "b": [1.5, None], "c": {"d": True}}]

    assert json.loads(rendered(pa.array(rows))[0].as_py()) == rows[0]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.duration("s"), pa.list_(pa.binary()), pa.struct([("a", pa.duration("s"))])],
)
def test_types_without_a_text_are_refused(kind: pa.DataType) -> None:
    assert "cast it to text" in (rendering_problem(kind) or "")
    with pytest.raises(UnrenderableError):
        rendered(pa.array([None, [b"a"] if pa.types.is_list(kind) else None], kind))


def test_nan_inside_json_is_refused() -> None:
    with pytest.raises(UnrenderableError, match="NaN has no form in JSON"):
        rendered(pa.array([[float("nan")]]))


def test_plain_types_hold_no_views_and_dictionaries() -> None:
    kind = pa.struct([("a", pa.list_(pa.dictionary(pa.int8(), pa.string_view())))])

    assert plain_type(kind) == pa.struct([("a", pa.list_(pa.string()))])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS: list[tuple[pa.DataType, st.SearchStrategy[Any], Any]] = [
    (pa.string(), TEXTS, lambda text: text),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1), int),
    (pa.uint64(), st.integers(0, 2**64 - 1), int),
    (pa.float64(), st.floats(allow_nan=False), float),
    (pa.float32(), st.floats(allow_nan=False, width=32), float),
    (pa.bool_(), st.booleans(), lambda text: {"true": True, "false": False}[text]),
    (
        pa.decimal128(38, 9),
        st.decimals(-(10**28), 10**28, places=9),
        decimal.Decimal,
    ),
    (pa.date32(), st.dates(), dt.date.fromisoformat),
    (pa.time64("us"), st.times(), dt.time.fromisoformat),
    (pa.timestamp("us"), st.datetimes(), dt.datetime.fromisoformat),
    (
        pa.timestamp("us", "Asia/Tokyo"),
        st.datetimes(_SECOND, _SECOND.replace(year=2200), timezones=st.just(_UTC)),
        dt.datetime.fromisoformat,
    ),
]


@pytest.mark.parametrize(("kind", "values", "read"), SCALARS, ids=[str(one[0]) for one in SCALARS])
@given(data=st.data())
def test_any_value_reads_back_equal_from_its_text(
    kind: pa.DataType, values: st.SearchStrategy[Any], read: Any, data: st.DataObject
) -> None:
    column = data.draw(st.lists(st.none() | values, min_size=1, max_size=10))
    array = pa.array(column, kind)
    start = data.draw(st.integers(0, len(column)))

    texts = rendered(array).to_pylist()

    def same(value: Any, text: str) -> bool:
        if kind == pa.float32():
            # The shortest text of a float32 is that of another float64.
            return pa.scalar(float(text), pa.float32()).as_py() == value
        return bool(read(text) == value)

    assert [text is None for text in texts] == [value is None for value in column]
    assert all(same(v, t) for v, t in zip(column, texts, strict=True) if t is not None)
    assert rendered(array.slice(start)).to_pylist() == texts[start:]


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.fixed_dictionaries({
    "text": st.none() | TEXTS,
    "numbers": st.none() | st.lists(st.none() | FINITE),
    "inner": st.none() | st.fixed_dictionaries({"whole": st.integers(-(2**63), 2**63 - 1)}),
})


@given(st.lists(st.none() | NESTED, min_size=1, max_size=8))
def test_any_nested_value_is_the_json_that_python_reads(rows: list[Any]) -> None:
    kind = pa.struct([
        ("text", pa.string()),
        ("numbers", pa.list_(pa.float64())),
        ("inner", pa.struct([("whole", pa.int64())])),
    ])

    texts = rendered(pa.array(rows, kind)).to_pylist()

    assert [None if text is None else json.loads(text) for text in texts] == rows
