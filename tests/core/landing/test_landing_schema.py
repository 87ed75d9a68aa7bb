"""Structured answers: typed columns, and a strict no with the path of the first error."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.landing.schema import compile_schema

NESTED = {
    "intent": {"type": "string", "enum": ["billing", "bug"]},
    "count": {"type": "integer"},
    "score": {"type": "number"},
    "urgent": {"type": ["boolean", "null"]},
    "tags": {"type": "array", "items": {"type": "string"}},
    "who": {
        "type": "object",
        "properties": {
            "first name": {"type": "string"},
            "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
    },
    "on": {"type": "string", "format": "date"},
    "extra": {"type": "object"},
    "either": {"type": ["string", "integer"]},
}

GOOD: dict[str, Any] = {
    "intent": "bug",
    "count": 2,
    "score": 1,
    "urgent": None,
    "tags": ["a", "b"],
    "who": {"first name": "Zoë", "age": None},
    "on": "2026-02-30",
    "extra": {"any": [1, {"thing": None}]},
    "either": 5,
}


def land(kit: Any, run_folder: Any, texts: list[str], output: Any) -> list[dict[str, Any]]:
    lines = [kit.native(n, kit.chat_body(text)) for n, text in enumerate(texts)]
    run_folder.add_part(len(lines), lines)
    run_folder.land(kit.job({"kind": "chat", "user": "{subject}", "output": output}))
    return run_folder.landed()


def test_each_property_becomes_a_typed_column(kit: Any, run_folder: Any) -> None:
    rows = land(kit, run_folder, [json.dumps(GOOD), "no"], NESTED)

    schema = pq.read_schema(next(run_folder.table_path.rglob("*.parquet")))
    assert {name: str(schema.field(name).type) for name in NESTED} == {
        "intent": "string",
        "count": "int64",
        "score": "double",
        "urgent": "bool",
        "tags": "list<element: string>",
        "who": "struct<first name: string, age: int64>",
        "on": "string",
        "extra": "string",
        "either": "string",
    }
    landed = {name: rows[0][name] for name in NESTED}
    assert landed == GOOD | {"score": 1.0, "extra": '{"any":[1,{"thing":null}]}', "either": "5"}
    assert {rows[1][name] for name in NESTED} == {None}


WRONG = {
    "not json": ("billing", "output_not_json", "JSON is malformed: invalid character (byte 0)"),
    "fenced": (
        '```json\n{"intent": "bug"}\n```',
        "output_not_json",
        "JSON is malformed: invalid character (byte 0) (the answer is fenced in Markdown)",
    ),
    "empty": ("", "output_not_json", "Input data was truncated"),
    "cut": ('{"intent": "bi', "output_not_json", "Input data was truncated"),
    "trailing": ('{"intent": "bug"} ok', "output_not_json", None),
    "bom": ('\ufeff{"intent": "bug"}', "output_not_json", None),
    "NaN": ('{"intent": NaN}', "output_not_json", None),
    "surrogate": ('{"intent": "\\ud800"}', "output_not_json", None),
    "a list": ("[]", "output_not_in_schema", "Expected `object`, got `array` - at `$`"),
    "null": ("null", "output_not_in_schema", "Expected `object`, got `null` - at `$`"),
    "absent": ("{}", "output_not_in_schema", "Object missing required field `intent` - at `$`"),
    "unknown field": (
        '{"intent": "bug", "x": 1}',
        "output_not_in_schema",
        "Object contains unknown field `x` - at `$`",
    ),
    "enum": (
        '{"intent": "refund"}',
        "output_not_in_schema",
        "Invalid enum value 'refund' - at `$.intent`",
    ),
    "enum by case": (
        '{"intent": "Bug"}',
        "output_not_in_schema",
        "Invalid enum value 'Bug' - at `$.intent`",
    ),
    "deep": ("[" * 200_000, "output_not_in_schema", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_kept_raw_with_the_first_error(
    kit: Any, run_folder: Any, name: str
) -> None:
    text, code, message = WRONG[name]
    output = {"intent": {"type": "string", "enum": ["billing", "bug"]}}

    rows = land(kit, run_folder, ['{"intent": "bug"}', text, '{"intent": "billing"}'], output)

    assert [row["intent"] for row in rows] == ["bug", None, "billing"]
    assert (rows[1]["_status"], rows[1]["_error_code"]) == ("invalid_output", code)
    assert message is None or rows[1]["_error_message"] == message
    assert rows[1]["_raw_output"] == text


def test_an_answer_that_the_cap_cut_says_so(kit: Any, run_folder: Any) -> None:
    body = {"choices": [{"message": {"content": '{"urgent": tr'}, "finish_reason": "length"}]}
    whole = {"choices": [{"message": {"content": '{"urgent": true}'}, "finish_reason": "length"}]}
    run_folder.add_part(2, [kit.native(0, body), kit.native(1, whole)])
    output = {"urgent": {"type": "boolean"}}

    run_folder.land(kit.job({"kind": "chat", "user": "{subject}", "output": output}))

    rows = run_folder.landed()
    assert rows[0]["_error_code"] == "output_truncated"
    assert rows[0]["_error_message"].startswith("cut at the output cap: ")
    assert (rows[1]["_status"], rows[1]["urgent"]) == ("succeeded", True)


# Each: a schema, values it takes with what lands, and values it refuses.
RULES: dict[str, tuple[Any, list[tuple[str, Any]], list[str]]] = {
    "integer": (
        {"type": "integer"},
        [
            ("1", 1),
            ("-0", 0),
            ("2.0", 2),
            ("1e3", 1000),
            ("9223372036854775807", 2**63 - 1),
            ("-9223372036854775808", -(2**63)),
        ],
        ["1.5", '"1"', "true", "null", "9223372036854775808", "1e19", "1e400", "9" * 5000],
    ),
    "number": (
        {"type": "number"},
        [("1", 1.0), ("0.1", 0.1), ("1e308", 1e308)],
        ["1e400", '"1"', "true", "null", "NaN", "9" * 400],
    ),
    "bounds": (
        {"type": "integer", "minimum": 1, "exclusiveMaximum": 5},
        [("1", 1), ("4.0", 4)],
        ["0", "5", "5.0", "0.0"],
    ),
    "multiple": ({"type": "integer", "multipleOf": 5}, [("10", 10)], ["3", "3.0"]),
    "float bounds": (
        {"type": "number", "minimum": 0, "exclusiveMinimum": 0, "maximum": 1},
        [("1", 1.0)],
        ["0", "1.01"],
    ),
    "too wide bounds": (
        {"type": "integer", "minimum": -1e30, "maximum": 1e30},
        [("5", 5)],
        ["1e25"],
    ),
    "string": (
        {"type": "string", "minLength": 1, "maxLength": 2},
        [('"é😀"', "é😀"), ('"\\u0000"', "\x00")],
        ['""', '"abc"', "1", "null"],
    ),
    "pattern": ({"type": "string", "pattern": "^a"}, [('"ab"', "ab")], ['"ba"']),
    "pattern of another language": (
        {"type": "string", "pattern": "(?<x>a"},
        [('"ba"', "ba")],
        ["1"],
    ),
    "format": ({"type": "string", "format": "date-time"}, [('"soon"', "soon")], ["5"]),
    "boolean": ({"type": "boolean"}, [("true", True)], ["1", '"true"', "null"]),
    "nullable by anyOf": (
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        [("null", None), ("3", 3)],
        ['"3"'],
    ),
    "nullable by list": ({"type": ["string", "null"]}, [("null", None), ('"a"', "a")], ["3"]),
    "only null": ({"type": "null"}, [("null", None)], ["0"]),
    "enum with null": ({"enum": ["a", None]}, [("null", None), ('"a"', "a")], ['"b"']),
    "typed enum with null": (
        {"type": ["string", "null"], "enum": ["a", None]},
        [("null", None), ('"a"', "a")],
        ['"b"'],
    ),
    "integer enum": ({"type": "integer", "enum": [1, 2]}, [("2", 2)], ["3", '"2"']),
    "const": ({"const": "x"}, [('"x"', "x")], ['"y"', "null"]),
    "mixed enum": (
        {"enum": ["a", 1, True]},
        [('"a"', '"a"'), ("1", "1"), ("true", "true")],
        ["2", "false", "null"],
    ),
    "array": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        [("[1,2]", [1, 2])],
        ["[]", "[null]", '["1"]', "{}"],
    ),
    "array of objects": (
        {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        [('[{"a": 1.0}]', [{"a": 1}]), ("[]", [])],
        ["[{}]", '[{"a": 1, "b": 2}]'],
    ),
    "free array": ({"type": "array"}, [('[1, "a"]', '[1,"a"]')], ["{}"]),
    "free object": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [('{"a": 1}', '{"a":1}')],
        ["[]"],
    ),
    "anything": (
        {},
        [("null", None), ('{"a": 99999999999999999999}', '{"a":99999999999999999999}')],
        [],
    ),
    "union": (
        {"anyOf": [{"type": "integer"}, {"type": "string", "enum": ["a"]}]},
        [("1", "1"), ('"a"', '"a"')],
        ['"b"', "1.5", "null"],
    ),
    "union of objects": (
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}},
                {"type": "object", "properties": {"b": {"type": "string"}}},
            ]
        },
        [('{"a": 1}', '{"a":1}'), ('{"b": "x"}', '{"b":"x"}')],
        ['{"a": "x"}', "{}"],
    ),
    "reference": ({"$ref": "#/$defs/Kind"}, [('"x"', "x")], ['"y"']),
    "allOf of one": (
        {"allOf": [{"$ref": "#/$defs/Kind"}], "description": "d"},
        [('"x"', "x")],
        ['"y"'],
    ),
    "nullable reference": (
        {"anyOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}]},
        [('"x"', "x"), ("null", None)],
        ['"y"'],
    ),
    "recursion": (
        {"$ref": "#/$defs/Tree"},
        [('{"children": [{"children": []}]}', {"children": ['{"children":[]}']})],
        ["[]"],
    ),
    "empty object": (
        {"type": "object", "properties": {}, "additionalProperties": False},
        [("{}", "{}")],
        ["1"],
    ),
    "nested path": (
        {
            "type": "object",
            "properties": {
                "a": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"b c": {"type": "boolean"}},
                        "required": [],
                        "additionalProperties": False,
                    },
                }
            },
            "required": ["a"],
            "additionalProperties": False,
        },
        [
            ('{"a": [{"b c": true}]}', {"a": [{"b c": True}]}),
            ('{"a": [{}]}', {"a": [{"b c": None}]}),
        ],
        ['{"a": [{"b c": 1}]}', '{"a": [{"d": true}]}'],
    ),
}

DEFS = {
    "Kind": {"type": "string", "enum": ["x"]},
    "Tree": {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["children"],
    },
}


@pytest.mark.parametrize("name", RULES)
def test_a_schema_takes_what_it_should_and_nothing_else(
    kit: Any, run_folder: Any, name: str
) -> None:
    schema, good, bad = RULES[name]
    whole = {"type": "object", "properties": {"v": schema}, "required": ["v"], "$defs": DEFS}

    rows = land(kit, run_folder, [f'{{"v": {text}}}' for text in [t for t, _ in good] + bad], whole)

    landed = [(row["_status"], row["v"]) for row in rows]
    assert landed == [("succeeded", value) for _, value in good] + [("invalid_output", None)] * len(
        bad
    )
    # A BOM or bytes that no parser takes aside, an error names the place.
    for row, text in zip(rows[len(good) :], bad, strict=True):
        assert "$.v" in row["_error_message"] or row["_error_code"] == "output_not_json", text


def test_the_path_of_a_nested_error_uses_the_schemas_own_names(kit: Any, run_folder: Any) -> None:
    schema, _, bad = RULES["nested path"]

    rows = land(kit, run_folder, [f'{{"v": {bad[0]}}}'], {"v": schema})

    assert rows[0]["_error_message"] == "Expected `bool`, got `int` - at `$.v.a[0].b c`"


def test_optional_properties_are_null_where_they_are_left_out(kit: Any, run_folder: Any) -> None:
    output = {"a": {"type": "string"}, "b": {"type": "integer", "optional": True}}

    rows = land(
        kit, run_folder, ['{"a": "x"}', '{"a": "x", "b": 1}', '{"a": "x", "b": null}'], output
    )

    assert [(row["_status"], row["b"]) for row in rows] == [
        ("succeeded", None),
        ("succeeded", 1),
        ("invalid_output", None),
    ]


def test_a_schema_without_properties_is_refused() -> None:
    with pytest.raises(ValueError, match="names no property"):
        compile_schema({"type": "object"})
    with pytest.raises(ValueError, match="leads nowhere"):
        compile_schema({"properties": {"a": {"$ref": "#/$defs/absent"}}})


def test_any_json_value_lands_or_is_refused_and_never_breaks_arrow() -> None:
    values = [
        "1",
        "1.0",
        "-1e300",
        "1e-320",
        "true",
        "null",
        '""',
        "[]",
        "{}",
        "9" * 30,
        '"\\u0000"',
        "[[]]",
        '[{"a":[]}]',
    ]
    for schema, _, _ in RULES.values():
        compiled = compile_schema({"properties": {"v": schema}, "required": ["v"], "$defs": DEFS})
        column = compiled.columns[0]
        for value in values:
            try:
                decoded = compiled.decoder.decode(f'{{"v": {value}}}')
            except ValueError:
                continue
            from batchrouter.landing.schema import plain

            pa.array(plain([getattr(decoded, column.attribute)]), column.typed.arrow)
