"""Output schemas: what cannot become columns is refused at load, and nothing fails later."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.errors import JobError
from batchrouter.job import Chat
from batchrouter.job.schemas import closed_schema
from batchrouter.landing.outputs import ObjectReader
from batchrouter.landing.schema import compile_schema

BAD: dict[str, tuple[Any, str]] = {
    "no such type": ({"type": "text"}, ".a: there is no type 'text'"),
    "no schema": ("string", ".a: must be a schema such as {type: string}, not text"),
    "an old tuple": ({"items": [{"type": "string"}]}, ".a: items must be a schema, not a list"),
    "no values": ({"enum": []}, ".a: enum is empty; it must be a list of the values"),
    "values without a list": ({"enum": "x"}, ".a: enum must be a list"),
    "no property": ({"properties": {"b": 5}}, ".a.properties.b: must be a schema"),
    "a list of properties": ({"properties": [1]}, ".a: properties must be a mapping"),
    "names that are none": ({"required": [1]}, ".a: required must be a list of property names"),
    "several at once": ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "merge them into one"),
    "an empty union": ({"anyOf": []}, ".a: anyOf is empty; it must be a list of schemas"),
    "a union of one": ({"anyOf": {"type": "string"}}, ".a: anyOf must be a list of schemas, not a"),
    "beyond 64 bits": ({"type": "integer", "minimum": 2**63}, "an integer column holds 64 bits"),
    "below 64 bits": ({"type": "integer", "maximum": -(2**64)}, "an integer column holds 64 bits"),
    "no number": ({"minimum": "1"}, ".a: minimum must be a number, not text"),
    "a length below nought": ({"maxLength": -1}, ".a: maxLength must be a whole number from 0"),
    "true is no length": ({"minLength": True}, ".a: minLength must be a whole number"),
    "a step of nought": ({"multipleOf": 0}, ".a: multipleOf must be a number above 0, not 0"),
    "a pattern that is no text": ({"pattern": 5}, ".a: pattern must be text, not 5"),
    "a lost reference": ({"$ref": "#/$defs/X"}, ".a: $ref '#/$defs/X' leads nowhere"),
    "a foreign reference": ({"$ref": "https://x/y"}, "leads nowhere; point it into #/$defs"),
    "deep inside": (
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "nope"}]}},
        ".a.items.anyOf[1]: there is no type 'nope'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_schema_is_refused_at_load_with_its_path(name: str) -> None:
    schema, problem = BAD[name]

    with pytest.raises(JobError) as caught:
        Chat(user="x", output={"a": schema})

    assert problem in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="a: there is no type") as caught:
        closed_schema({"a": {"type": "text"}, "b": {"minLength": -1}, "c": {"pattern": 1}})

    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["a/b", "a~b"])
def test_a_reference_may_name_what_json_pointers_escape(name: str) -> None:
    escaped = name.replace("~", "~0").replace("/", "~1")
    schema = {
        "type": "object",
        "properties": {"v": {"$ref": f"#/$defs/{escaped}"}},
        "$defs": {name: {"type": "integer"}},
    }

    compiled = compile_schema(closed_schema(schema))

    assert str(compiled.columns[0].typed.arrow) == "int64"


VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "x", [], {}, [1], {"type": "string"}, ["string", "null"],
    [{"type": "string"}], [{"type": "integer"}, {"type": "null"}], {"a": {"type": "string"}},
    ["a", None], [1, True], [[1], {"b": 1}], "#", "#/$defs/K", "^a", "(", [2**70], 1e300,
]  # fmt: skip
KEYWORDS = [
    "type", "enum", "const", "properties", "required", "additionalProperties", "items",
    "prefixItems", "minItems", "maximum", "exclusiveMinimum", "multipleOf", "minLength",
    "maxLength", "pattern", "anyOf", "oneOf", "allOf", "$ref", "$defs", "format", "default",
]  # fmt: skip
TYPES = ["string", "object", "array", "integer", "number", "boolean", "null", ["string", "null"]]
ANSWERS = ["1", "null", '"a"', "[]", "{}", '[1, {"a": "x"}]', '{"a": 1, "b": 2}', "1e400", "{"]


def any_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema that is right in most places."""
    schema: dict[str, Any] = {"type": chance.choice(TYPES)} if chance.random() < 0.7 else {}
    for keyword in chance.sample(KEYWORDS, chance.randint(0, 3)):
        inner = depth < 3 and chance.random() < 0.8
        if inner and keyword in {"items", "additionalProperties"}:
            schema[keyword] = any_schema(chance, depth + 1)
        elif inner and keyword in {"anyOf", "oneOf", "allOf", "prefixItems"}:
            schema[keyword] = [any_schema(chance, depth + 1) for _ in range(chance.randint(0, 3))]
        elif inner and keyword in {"properties", "$defs"}:
            names = chance.sample(["a", "b", "K"], chance.randint(0, 3))
            schema[keyword] = {name: any_schema(chance, depth + 1) for name in names}
        else:
            schema[keyword] = chance.choice(VALUES)
    return schema


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32))
def test_a_schema_that_loads_becomes_columns_and_lands_any_answer(seed: int) -> None:
    chance = random.Random(seed)
    output = {
        "type": "object",
        "properties": {"v": any_schema(chance)},
        "$defs": {"K": any_schema(chance, 2)},
    }
    try:
        closed = closed_schema(output)
    except ValueError:
        return
    compiled = compile_schema(closed)
    for answer in ANSWERS:
        try:
            decoded = compiled.decoder.decode(f'{{"v": {answer}}}')
        except (msgspec.DecodeError, RecursionError):
            continue
        ObjectReader(compiled).arrays([decoded, None])
