"""How a value of each Arrow type is written in a prompt: one table, the same in every engine.

| Arrow type | text | inside nested JSON |
| --- | --- | --- |
| string (all), dictionary, arrow.json | itself | quoted |
| bool | `true`, `false` | the same |
| integers | decimal digits | the same |
| float16, 32, 64 | the shortest text that reads back equal: `1.0`, `0.1`, `1e+16` | the same |
| NaN, infinities | `NaN`, `Infinity`, `-Infinity` | refused: JSON has none |
| decimal | plain digits with its scale: `12.30` | the same, a number |
| date | `2024-01-02` | quoted |
| time | `03:04:05`, `03:04:05.25` | quoted |
| timestamp | `2024-01-02T03:04:05.25`; with a zone in UTC: `…05.25Z` | quoted |
| dates and times that no calendar has | refused | refused |
| uuid | `8-4-4-4-12` hex | quoted |
| list, struct, map | compact JSON, as `json.dumps(…, ensure_ascii=False)` | nested |
| NULL | the job's `on_null` decides | `null` |
| binary, duration, interval, union, other extensions | refused: cast them in the source | refused |

Engines disagree on all but strings and integers (str(None), 1.0, time zones, decimals), so nothing
here leans on an engine's own cast where the table says otherwise.
"""

import json
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from batchrouter.manifest.arrow import Array, DataType, pc

_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class UnrenderableError(ValueError):
    """A value has no rendering; the caller knows the column and finds the row."""


def plain_type(kind: DataType) -> DataType:
    """Give the type without views, dictionaries and run ends, which differ between batches.

    Example:
        >>> plain_type(pa.dictionary(pa.int32(), pa.string_view()))
        DataType(string)
    """
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        kind = plain_type(kind.value_type)
    elif pt.is_string_view(kind):
        kind = pa.string()
    elif pt.is_binary_view(kind):
        kind = pa.binary()
    elif pt.is_list(kind) or pt.is_list_view(kind):
        kind = pa.list_(plain_type(kind.value_type))
    elif pt.is_large_list(kind) or pt.is_large_list_view(kind):
        kind = pa.large_list(plain_type(kind.value_type))
    elif pt.is_struct(kind):
        kind = pa.struct([each.with_type(plain_type(each.type)) for each in kind.fields])
    return kind


def plain(array: Array) -> Array:
    """Decode dictionaries, run ends and views; other arrays are returned as they are."""
    if pt.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pt.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    target = plain_type(array.type)
    return array if target.equals(array.type) else array.cast(target)


def rendering_problem(kind: DataType) -> str | None:
    """Say why a type has no text, or None when the table has it."""
    kind = plain_type(kind)
    if pt.is_map(kind):
        return rendering_problem(kind.key_type) or rendering_problem(kind.item_type)
    if _is_list(kind):
        return rendering_problem(kind.value_type)
    if pt.is_struct(kind):
        return next(filter(None, (rendering_problem(each.type) for each in kind.fields)), None)
    if _text_of(kind) or pt.is_null(kind):
        return None
    return f"{kind} has no text; cast it to text in the source"


def rendered(array: Array) -> Array:
    """Write each value as text by the table above; NULL stays NULL.

    Returns:
        A string or large_string array of the same length.

    Raises:
        UnrenderableError: The type, or a value, has no text.
    """
    array = plain(array)
    if pt.is_string(array.type) or pt.is_large_string(array.type):
        return array
    if pt.is_null(array.type):
        return pa.nulls(len(array), pa.string())
    writer = _text_of(array.type)
    if writer:
        return writer(array)
    return _with_nulls_of(array, _fragments(array))


def _with_nulls_of(array: Array, texts: list[str]) -> Array:
    valid = array.is_valid().to_pylist()
    told = [text if there else None for text, there in zip(texts, valid, strict=True)]
    return pa.array(told, pa.string())


def _is_list(kind: DataType) -> bool:
    return pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)


def _text_of(kind: DataType) -> Callable[[Array], Array] | None:
    for accepts, writer in _TABLE:
        if accepts(kind):
            return writer
    return None


def _as_is(array: Array) -> Array:
    return array.cast(pa.string())


def _storage(array: Array) -> Array:
    return rendered(array.storage)


def _float_text(array: Array) -> Array:
    # str of a numpy scalar is the shortest text of its own width: 0.1 and not 0.10000000149.
    texts = [str(value) for value in array.fill_null(0).to_numpy(zero_copy_only=False)]
    return _with_nulls_of(array, [_SPECIAL.get(text, text) for text in texts])


def _decimal_text(array: Array) -> Array:
    return pa.array([None if v is None else format(v, "f") for v in array.to_pylist()], pa.string())


def _date_text(array: Array) -> Array:
    return _on_calendar(array.cast(pa.date32()).cast(pa.string()))


def _uuid_text(array: Array) -> Array:
    raw = array.storage.to_pylist()
    return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in raw], pa.string())


def _time_text(array: Array) -> Array:
    return _without_trailing_zeros(_on_calendar(array.cast(pa.string())))


def _timestamp_text(array: Array) -> Array:
    naive = array.cast(pa.timestamp(array.type.unit))  # a zoned one becomes its UTC wall time
    text = _on_calendar(naive.cast(pa.string()))
    text = _without_trailing_zeros(pc.replace_substring(text, " ", "T"))
    return pc.binary_join_element_wise(text, "Z", "") if array.type.tz else text


def _on_calendar(text: Array) -> Array:
    # Arrow writes `<value out of range: …>`, which no prompt should hold.
    strange = text.filter(pc.starts_with(text, "<"))
    if len(strange):
        told = strange[0].as_py().strip("<>").rpartition(" ")[2]
        raise UnrenderableError(f"{told} is no time of the calendar; make it NULL or text")
    return text


def _without_trailing_zeros(text: Array) -> Array:
    text = pc.replace_substring_regex(text, r"\.0+$", "")
    return pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$", r"\1")


def _is_named_extension(name: str) -> Callable[[DataType], bool]:
    return lambda kind: getattr(kind, "extension_name", None) == name


_TABLE: tuple[tuple[Callable[[DataType], bool], Callable[[Array], Array]], ...] = (
    (pt.is_string, lambda array: array),
    (pt.is_large_string, lambda array: array),
    (pt.is_boolean, _as_is),
    (pt.is_integer, _as_is),
    (pt.is_floating, _float_text),
    (pt.is_decimal, _decimal_text),
    (pt.is_date, _date_text),
    (pt.is_time, _time_text),
    (pt.is_timestamp, _timestamp_text),
    (_is_named_extension("arrow.json"), _storage),
    (_is_named_extension("arrow.uuid"), _uuid_text),
)


def _fragments(array: Array) -> list[str]:
    """Write each value as JSON; a NULL is `null`."""
    array = plain(array)
    kind = array.type
    if pt.is_null(kind):
        return ["null"] * len(array)
    if pt.is_struct(kind):
        return _struct_fragments(array)
    if pt.is_map(kind) or _is_list(kind):
        return _list_fragments(array)
    writer = _text_of(kind)
    if writer is None:
        raise UnrenderableError(rendering_problem(kind))
    texts = writer(array).to_pylist()
    if pt.is_floating(kind):
        special = next((text for text in texts if text in _SPECIAL.values()), None)
        if special:
            raise UnrenderableError(f"{special} has no form in JSON; make it NULL or text")
    if pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind):
        return ["null" if text is None else text for text in texts]
    return [json.dumps(text, ensure_ascii=False) for text in texts]


def _struct_fragments(array: Array) -> list[str]:
    if not array.type.num_fields:
        return ["{}" if valid else "null" for valid in array.is_valid().to_pylist()]
    names = [json.dumps(each.name, ensure_ascii=False) for each in array.type.fields]
    children = [_fragments(child) for child in array.flatten()]
    return [
        "{" + ",".join(f"{name}:{text}" for name, text in zip(names, row, strict=True)) + "}"
        if valid
        else "null"
        for row, valid in zip(
            zip(*children, strict=True), array.is_valid().to_pylist(), strict=True
        )
    ]


def _list_fragments(array: Array) -> list[str]:
    """Write lists as `[…]` and maps as `{…}`, by the offsets into their flat children."""
    is_map = pt.is_map(array.type)
    if pt.is_fixed_size_list(array.type):
        width = array.type.list_size
        first = array.offset * width
        ends = np.arange(len(array) + 1, dtype=np.int64) * width
    else:
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        first, ends = int(offsets[0]), offsets - offsets[0]
    count = int(ends[-1])
    if is_map:
        keys = rendered(array.keys.slice(first, count)).to_pylist()
        items = _fragments(array.items.slice(first, count))
        flat = [
            f"{json.dumps(k, ensure_ascii=False)}:{v}" for k, v in zip(keys, items, strict=True)
        ]
    else:
        flat = _fragments(array.values.slice(first, count))
    opening, closing = "{}" if is_map else "[]"
    return [
        f"{opening}{','.join(flat[ends[row] : ends[row + 1]])}{closing}" if valid else "null"
        for row, valid in enumerate(array.is_valid().to_pylist())
    ]
