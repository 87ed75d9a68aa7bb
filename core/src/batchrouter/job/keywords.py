"""What a JSON Schema's keywords may hold, so that no schema fails first where columns are made."""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from batchrouter.job.problems import name_of_type

_MOST = 2**31 - 1
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_full_list(value: Any) -> bool:
    return _is_list(value) and bool(value)


def _are_names(value: Any) -> bool:
    return _is_list(value) and all(isinstance(each, str) for each in value)


def _is_type(value: Any) -> bool:
    return isinstance(value, str) or (_is_full_list(value) and _are_names(value))


_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("type",), _is_type, "a type or a list of types"),
    (("enum",), _is_full_list, "a list of the values that are allowed"),
    (("required",), _are_names, "a list of property names"),
    (
        ("properties", "$defs", "definitions"),
        lambda value: isinstance(value, Mapping),
        "a mapping of names to schemas",
    ),
    (("anyOf", "oneOf", "allOf", "prefixItems"), _is_full_list, "a list of schemas"),
    (
        ("items", "additionalProperties"),
        lambda value: isinstance(value, Mapping | bool),
        "a schema",
    ),
    (
        ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
        _is_count,
        f"a whole number from 0 to {_MOST}",
    ),
    (
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        _is_number,
        "a number",
    ),
    (("multipleOf",), lambda value: _is_number(value) and value > 0, "a number above 0"),
    (
        ("pattern", "$ref", "format", "title", "description", "$schema", "$id", "$comment"),
        lambda value: isinstance(value, str),
        "text",
    ),
    (("optional", "uniqueItems"), lambda value: isinstance(value, bool), "true or false"),
)
"""https://json-schema.org/draft/2020-12/json-schema-validation, sections 6 to 9."""


def value_problems(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each keyword that holds what it cannot.

    Example:
        >>> list(value_problems({"type": "string", "minLength": "3"}))
        ['minLength must be a whole number from 0 to 2147483647, not text']
    """
    for keywords, accepts, told in _KINDS:
        for keyword in keywords:
            if keyword in schema and not accepts(schema[keyword]):
                yield _problem(keyword, schema[keyword], told)


def _problem(keyword: str, value: Any, told: str) -> str:
    if _is_list(value) and "list" in told:
        return f"{keyword} {'must' if value else 'is empty; it must'} be {told}"
    found = value if _is_number(value) else name_of_type(value)
    return f"{keyword} must be {told}, not {found}"


def beyond_64_bits(schema: Mapping[str, Any]) -> Iterator[str]:
    """Say which bounds of an integer leave no number that a column of 64 bits can hold."""
    for keyword in ("minimum", "exclusiveMinimum"):
        if schema.get(keyword, 0) > _INT64_MAX:
            yield f"{keyword}: an integer column holds 64 bits; use type: number or string"
    for keyword in ("maximum", "exclusiveMaximum"):
        if schema.get(keyword, 0) < _INT64_MIN:
            yield f"{keyword}: an integer column holds 64 bits; use type: number or string"
