"""Output schemas: what a job says → one closed JSON Schema, from which columns are made.

A job gives the properties only (short form), a whole object schema, a pydantic model, or the
name of one. In the short form and in whole schemas every property is required unless it says
`optional: true` (short form) or `required` stands beside `properties`.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, cast

from pydantic import BaseModel

from batchrouter.job.keywords import beyond_64_bits, value_problems
from batchrouter.job.problems import did_you_mean, name_of_type, path_text

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")

# https://json-schema.org/draft/2020-12 (applicators, validation, annotations), and pydantic's own.
_KEYWORDS = frozenset({
    "$schema", "$id", "$ref", "$defs", "definitions", "$comment", "type", "enum", "const",
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "format", "properties", "required", "additionalProperties", "minProperties", "maxProperties",
    "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
    "anyOf", "oneOf", "allOf", "discriminator", "optional",
})  # fmt: skip
_MODEL_NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def closed_schema(output: object) -> dict[str, Any]:
    """Turn any accepted form into an object schema with `additionalProperties: false`.

    Raises:
        ValueError: One problem a line, each with its path inside the output.

    Example:
        >>> closed_schema({"urgent": {"type": "boolean"}})["required"]
        ['urgent']
    """
    if isinstance(output, str):
        output = _model_named(output)
    if isinstance(output, type):
        if not issubclass(output, BaseModel):
            raise ValueError(f"{output.__name__} is no pydantic model; derive it from BaseModel")  # noqa: TRY004 - as below
        return _close(output.model_json_schema(mode="validation"), required_by_default=False)
    if not isinstance(output, Mapping):
        raise ValueError(  # noqa: TRY004 - pydantic turns only ValueError into a field's problem
            f"must be a mapping of properties or the name of a pydantic model,"
            f" not {name_of_type(output)}"
        )
    given = {str(name): value for name, value in output.items()}
    whole = given if given.get("type") == "object" else {"type": "object", "properties": given}
    problems = list(_problems(whole, () if whole is given else None, whole))
    if not whole.get("properties"):
        problems.append("names no property; say which columns the model must answer")
    if problems:
        raise ValueError("\n".join(problems))
    return _close(plain_json(whole), required_by_default=True)


def plain_json(value: Any) -> Any:
    """Copy a value with decimals as floats and tuples as lists, so that JSON can hold it.

    Raises:
        ValueError: A value that JSON has no form for.
    """
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):  # noqa: PLR0124 - NaN
        raise ValueError(f"{value} has no form in JSON; leave it out")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{name_of_type(value)} has no form in JSON; write it as text")


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Tell whether all objects are closed and require all they have, as strict modes want."""
    return all(
        set(node.get("required", ())) == set(node["properties"])
        and node.get("additionalProperties") is False
        for node in _nodes(schema)
        if "properties" in node
    )


def _model_named(name: str) -> type:
    if not _MODEL_NAME.match(name):
        raise ValueError(
            "must be a mapping of properties, or `package.module:PydanticModel` to use a model"
        )
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"cannot import {module_name}: {error}; is it on the PYTHONPATH?"
        ) from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        models = [
            each for each, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
        ]  # fmt: skip
        near = did_you_mean(class_name, models)
        raise ValueError(f"{module_name} has no pydantic model {class_name}; {near}")  # noqa: TRY004 - as below
    return found


def _close(schema: dict[str, Any], *, required_by_default: bool) -> dict[str, Any]:
    for node in _nodes(schema):
        properties = node.get("properties")
        if properties is None:
            continue
        optional = {
            name
            for name, each in properties.items()
            if isinstance(each, dict) and each.pop("optional", False)
        }
        everything = [name for name in properties if name not in optional]
        node.setdefault("required", everything if required_by_default else [])
        node.setdefault("additionalProperties", False)
    return schema


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Walk every schema inside a schema, itself first."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword in ("properties", "$defs", "definitions"):
        for child in (schema.get(keyword) or {}).values():
            yield from _nodes(child)
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for child in schema.get(keyword) or ():
            yield from _nodes(child)
    for keyword in ("items", "additionalProperties"):
        yield from _nodes(schema.get(keyword))


def _problems(
    schema: object, path: tuple[str | int, ...] | None, root: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong; a path of None is the short form's root, which no one wrote."""
    here = path or ()
    at = f".{path_text(here)}: " if here else ""
    if not isinstance(schema, Mapping):
        yield f"{at}must be a schema such as {{type: string}}, not {name_of_type(schema)}"
        return
    given = cast("Mapping[str, Any]", schema)
    for keyword in given:
        if keyword not in _KEYWORDS and not str(keyword).startswith("x-"):
            yield f"{at}JSON Schema has no {keyword!r}; {_near_keyword(str(keyword))}"
    told = list(value_problems(given))
    yield from (f"{at}{each}" for each in told)
    if told:
        return  # what is no schema has no schemas in it
    yield from (f"{at}{each}" for each in _own_problems(given, root))
    for keyword, child in _children(given):
        begin = () if path is None and keyword[0] == "properties" else (*here, keyword[0])
        yield from _problems(child, (*begin, *keyword[1:]), root)


def _children(
    schema: Mapping[str, Any],
) -> Iterator[tuple[tuple[str, *tuple[str | int, ...]], Any]]:
    """Yield the schemas right inside a schema, each with its path."""
    for keyword in ("properties", "$defs", "definitions"):
        for name, child in schema.get(keyword, {}).items():
            yield (keyword, str(name)), child
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, child in enumerate(schema.get(keyword, ())):
            yield (keyword, index), child
    for keyword in ("items", "additionalProperties"):
        if not isinstance(schema.get(keyword, True), bool):
            yield (keyword,), schema[keyword]


def _near_keyword(keyword: str) -> str:
    told = did_you_mean(keyword, _KEYWORDS)
    return told if told.startswith("did") else "prefix an own annotation with x-"


def _own_problems(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    types = schema.get("type", [])
    types = types if isinstance(types, list | tuple) else [types]
    for each in types:
        if each not in TYPES:
            yield f"there is no type {each!r}; {did_you_mean(each, TYPES)}"
    properties = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in properties:
            yield f"required names {name!r}, which is no property; {did_you_mean(name, properties)}"
    reference = schema.get("$ref")
    if reference is not None and not _resolves(reference, root):
        yield f"$ref {reference!r} leads nowhere; point it into #/$defs"
    if len(schema.get("allOf", ())) > 1:
        yield "allOf of several schemas gives no column a type; merge them into one"
    if "integer" in types:
        yield from beyond_64_bits(schema)


def _resolves(reference: str, root: Mapping[str, Any]) -> bool:
    if not reference.startswith("#"):
        return False
    node: Any = root
    for step in reference.lstrip("#/").split("/") if reference not in {"#", "#/"} else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = cast("Mapping[str, Any]", node)[name]
    return isinstance(node, Mapping)
