"""JSON Schema → Arrow types and a strict decoder: one compiled object for both.

==============================  =====================  ========================================
schema                          column                 accepted
==============================  =====================  ========================================
``string``, any ``format``      string                 strings, as the model wrote them: a model's
                                                       date may be ``2026-02-30``
``integer``                     int64                  whole numbers within int64, ``2.0`` too
``number``                      float64                numbers within float64
``boolean``                     bool                   ``true`` and ``false``
``enum``, ``const``             string, int64, bool    its values only; other types as JSON text
``object`` with properties      struct                 required ones present, no others when closed
``array`` with ``items``        list                   each element as its own schema says
``null`` beside one type        that column            ``null`` as NULL
other unions, free objects      string                 what one of the schemas accepts, as compact
and arrays, tuples, recursion                          JSON text
==============================  =====================  ========================================

A property that is not required is NULL where it is left out. `minimum`, `maxLength`, `pattern`,
`minItems` and their like are enforced; `not`, `if`, `contains`, `uniqueItems`, `minProperties`
and their like are left to the provider's strict mode.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec
import pyarrow as pa

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_LAST_EXACT_FLOAT = 2**53
_NUMBER_BOUNDS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
}

Schema = Mapping[str, Any]


class JsonText(str):
    """A value that has no column type of its own, kept as compact JSON text.

    Attributes:
        accepted: What the value may be, as types for msgspec; empty when anything goes.
        values: The values that it may have, as canonical JSON; None when anything goes.
    """

    __slots__ = ()
    accepted: tuple[Any, ...] = ()
    values: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Typed:
    """One schema, compiled.

    Attributes:
        arrow: The column's type.
        python: What msgspec decodes; annotated with the schema's bounds.
        is_nested: True when a decoded value must be turned to plain values for Arrow.
    """

    arrow: pa.DataType
    python: Any
    is_nested: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One property of the answer: its name, its type, and where the decoded struct keeps it."""

    name: str
    typed: Typed
    attribute: str


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """An output schema's columns, in its order, and the decoder that fills them."""

    columns: tuple[Column, ...]
    decoder: msgspec.json.Decoder[Any]


def compile_schema(schema: Schema) -> CompiledSchema:
    """Compile the schema of an answer, which is an object with properties.

    Raises:
        ValueError: The root names no property, or a `$ref` leads nowhere.

    Example:
        >>> compiled = compile_schema(
        ...     {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
        ... )
        >>> compiled.decoder.decode('{"n": "many"}')
        Traceback (most recent call last):
        msgspec.ValidationError: Expected `int | float`, got `str` - at `$.n`
    """
    compiler = _Compiler(schema)
    root, seen = compiler.resolved(schema, frozenset())
    if not root.get("properties"):
        raise ValueError("the output schema names no property, so the table gets no column")
    columns, struct = compiler.struct(root, seen)
    decoder = msgspec.json.Decoder(struct, dec_hook=_read_json_text)
    return CompiledSchema(columns, decoder)


def plain(value: Any) -> Any:
    """Turn a decoded value into dicts, lists and scalars under the schema's own names."""
    return msgspec.to_builtins(value, enc_hook=str)


class _Compiler:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def resolved(self, schema: Schema, seen: frozenset[str]) -> tuple[Schema, frozenset[str]]:
        """Follow `$ref` and an `allOf` of one; the names followed tell recursion."""
        while True:
            single = schema.get("allOf")
            if isinstance(schema.get("$ref"), str):
                reference: str = schema["$ref"]
                if reference in seen:
                    return {}, seen
                seen |= {reference}
                schema = {**self._at(reference), **_without(schema, "$ref")}
            elif isinstance(single, list) and len(cast("list[Any]", single)) == 1:
                schema = {**single[0], **_without(schema, "allOf")}
            else:
                return schema, seen

    def _at(self, reference: str) -> Schema:
        found: Any = self._root
        for step in reference.lstrip("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise ValueError(f"$ref {reference!r} leads nowhere in the output schema")
            found = cast("Schema", found)[name]
        return found

    def typed(self, schema: Any, seen: frozenset[str]) -> Typed:
        """Compile one schema; `true` and what it cannot narrow become JSON text."""
        if not isinstance(schema, Mapping):
            return _json_text()
        found, seen = self.resolved(cast("Schema", schema), seen)
        alternatives, is_nullable = _alternatives(found)
        if len(alternatives) == 1:
            only, seen = self.resolved(alternatives[0], seen)
            inner, inner_nullable = _alternatives(only)
            typed = self._single(only, seen) if inner == [only] else self.typed(only, seen)
            is_nullable = is_nullable or inner_nullable
        elif alternatives:
            typed = _json_text(self.typed(each, seen).python for each in alternatives)
        else:
            return Typed(pa.string(), None)
        if not is_nullable or typed.python is None:
            return typed
        return Typed(typed.arrow, typed.python | None, typed.is_nested)

    def _single(self, schema: Schema, seen: frozenset[str]) -> Typed:
        kind = schema.get("type") or ("object" if "properties" in schema else None)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            return _enumerated(values)
        if kind in _SCALARS:
            arrow, bounded = _SCALARS[kind]
            return Typed(arrow, bounded(schema))
        if kind == "array" and schema.get("items") and "prefixItems" not in schema:
            element = self.typed(schema["items"], seen)
            python = _list(element.python, schema)
            return Typed(pa.list_(element.arrow), python, element.is_nested)
        if kind == "object" and schema.get("properties") and not schema.get("additionalProperties"):
            columns, struct = self.struct(schema, seen)
            arrow = pa.struct([pa.field(each.name, each.typed.arrow) for each in columns])
            return Typed(arrow, struct, is_nested=True)
        return _json_text({"object": (dict,), "array": (list,)}.get(str(kind), ()))

    def struct(self, schema: Schema, seen: frozenset[str]) -> tuple[tuple[Column, ...], Any]:
        """Compile an object with properties into columns and a msgspec struct."""
        required = set(schema.get("required", ()))
        columns = tuple(
            Column(name, self.typed(each, seen), f"f{index}")
            for index, (name, each) in enumerate(schema["properties"].items())
        )
        fields: list[Any] = []
        for each in columns:
            if each.name in required:
                stored = msgspec.field(name=each.name)
            else:
                stored = msgspec.field(name=each.name, default=None)
            fields.append((each.attribute, each.typed.python, stored))
        is_closed = schema.get("additionalProperties") is False
        struct = msgspec.defstruct(
            "Answer", fields, gc=False, kw_only=True, forbid_unknown_fields=is_closed
        )
        return columns, struct


def _alternatives(schema: Schema) -> tuple[list[Schema], bool]:
    """Split a union into its alternatives without null; a schema that is none is its own."""
    kinds: Any = schema.get("type")
    if isinstance(kinds, list):
        rest = _without(schema, "type")
        each_kind: list[Schema] = [{**rest, "type": kind} for kind in kinds if kind != "null"]
        if "enum" in schema:
            # An enum decides by itself; its null is found below.
            each_kind = [rest]
        return _drop_null_value(each_kind, is_nullable="null" in kinds)
    union = schema.get("anyOf") or schema.get("oneOf")
    if union:
        given = [each if isinstance(each, Mapping) else {} for each in union]
        without_null = [each for each in given if not _is_null(each)]
        return without_null, len(without_null) < len(given)
    if _is_null(schema):
        return [], True
    return _drop_null_value([schema], is_nullable=schema.get("nullable") is True)


def _drop_null_value(schemas: list[Schema], *, is_nullable: bool) -> tuple[list[Schema], bool]:
    if len(schemas) == 1 and None in schemas[0].get("enum", ()):
        values = [each for each in schemas[0]["enum"] if each is not None]
        return ([{**schemas[0], "enum": values}] if values else []), True
    return schemas, is_nullable


def _is_null(schema: Schema) -> bool:
    return schema.get("type") == "null" or ("const" in schema and schema["const"] is None)


def _without(schema: Schema, keyword: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != keyword}


def _enumerated(values: list[Any]) -> Typed:
    if all(isinstance(each, str) for each in values):
        return Typed(pa.string(), Literal[tuple(values)])
    if all(isinstance(each, bool) for each in values):
        return Typed(pa.bool_(), bool) if len(set(values)) == 2 else _json_text(values=values)  # noqa: PLR2004 - both of them
    if all(type(each) is int and _INT64_MIN <= each <= _INT64_MAX for each in values):
        return Typed(pa.int64(), Literal[tuple(values)])
    return _json_text(values=values)


def _integer(schema: Schema) -> Any:
    low = max(_INT64_MIN, _limit(schema, "minimum", "exclusiveMinimum", sign=1))
    high = min(_INT64_MAX, -_limit(schema, "maximum", "exclusiveMaximum", sign=-1))
    step = schema.get("multipleOf")
    step = step if isinstance(step, int) and step > 0 else 1
    # JSON Schema counts 2.0 as an integer, and models write it. 2^63 - 1 itself is no float.
    float_end: dict[str, Any] = (
        {"le": float(high)} if high <= _LAST_EXACT_FLOAT else {"lt": 2.0**63}
    )
    whole = msgspec.Meta(ge=low, le=high, multiple_of=step)
    as_float = msgspec.Meta(ge=float(low), multiple_of=float(step), **float_end)
    return Annotated[int, whole] | Annotated[float, as_float]


def _limit(schema: Schema, inclusive: str, exclusive: str, *, sign: int) -> int:
    """Give the least integer that both lower bounds admit; sign -1 mirrors upper bounds."""
    limits = [_INT64_MIN]
    if _is_number(schema.get(inclusive)):
        limits.append(math.ceil(sign * schema[inclusive]))
    if _is_number(schema.get(exclusive)):
        limits.append(math.floor(sign * schema[exclusive]) + 1)
    return max(limits)


def _number(schema: Schema) -> Any:
    bounds: dict[str, Any] = {}
    for keyword, bound in _NUMBER_BOUNDS.items():
        if _is_number(schema.get(keyword)):
            bounds[bound] = float(schema[keyword])
    # msgspec takes one bound a side; of two, the one that is harder to pass.
    if "ge" in bounds and "gt" in bounds:
        bounds.pop("ge" if bounds["gt"] >= bounds["ge"] else "gt")
    if "le" in bounds and "lt" in bounds:
        bounds.pop("le" if bounds["lt"] <= bounds["le"] else "lt")
    # multipleOf is not asked of floats: 0.3 is no multiple of 0.1 to them.
    return Annotated[float, msgspec.Meta(**bounds)] if bounds else float


def _string(schema: Schema) -> Any:
    bounds: dict[str, Any] = _lengths(schema, "minLength", "maxLength")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        # JSON Schema's patterns are ECMAScript's; one that Python cannot read is not enforced.
        with contextlib.suppress(re.error):
            re.compile(pattern)
            bounds["pattern"] = pattern
    return Annotated[str, msgspec.Meta(**bounds)] if bounds else str


def _list(element: Any, schema: Schema) -> Any:
    bounds = _lengths(schema, "minItems", "maxItems")
    return Annotated[list[element], msgspec.Meta(**bounds)] if bounds else list[element]


def _lengths(schema: Schema, at_least: str, at_most: str) -> dict[str, Any]:
    given = {"min_length": schema.get(at_least), "max_length": schema.get(at_most)}
    return {name: each for name, each in given.items() if isinstance(each, int) and each >= 0}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_text(accepted: Iterable[Any] = (), values: Iterable[Any] | None = None) -> Typed:
    types = tuple(accepted)
    canonical = None if values is None else frozenset(_canonical(each) for each in values)
    kind: Any = type("JsonText", (JsonText,), {"accepted": types, "values": canonical})
    return Typed(pa.string(), kind if types or canonical is not None else kind | None)


def _read_json_text(kind: type[JsonText], value: Any) -> JsonText:
    if kind.values is not None and _canonical(value) not in kind.values:
        raise ValueError(f"Invalid enum value {value!r}")
    problem: msgspec.ValidationError | None = None
    for each in kind.accepted:
        try:
            msgspec.convert(value, each, dec_hook=_read_json_text)
        except msgspec.ValidationError as error:
            problem = error
        else:
            problem = None
            break
    if problem is not None:
        raise ValueError(f"No alternative fits; of the last one: {problem}")
    return kind(msgspec.json.encode(value).decode())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


_SCALARS: dict[str, tuple[pa.DataType, Callable[[Schema], Any]]] = {
    "integer": (pa.int64(), _integer),
    "number": (pa.float64(), _number),
    "string": (pa.string(), _string),
    "boolean": (pa.bool_(), lambda _: bool),
}
