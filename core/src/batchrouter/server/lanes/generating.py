"""Values that satisfy a JSON Schema and have something to do with the text they answer.

A schema is compiled once to a tree of small functions; each item then costs microseconds.
What is drawn comes from a generator that is seeded by the item alone, so that the same item
gets the same answer in every process.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from batchrouter.server.lanes.patterns import MAX_MATCHED_CHARACTERS, bounded_pattern
from batchrouter.server.lanes.wording import LabelChooser, stems

__all__ = ["Drawing", "SchemaGenerator", "UnsupportedSchemaError"]

_MASK = (1 << 64) - 1
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MAX_DIGITS = 16
_MAX_DEPTH = 6
_EXCERPT_CHARACTERS = 80

#: A chunk of 4,000 answers is held in memory: a schema may not ask for much more than one line
#: of a manifest can hold itself, nor take long to read.
_MAX_ANSWER_CHARACTERS = 128 * 1024
_VALUE_CHARACTERS = 32
_MAX_SCHEMA_PARTS = 10_000
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_SECONDS_PER_YEAR = 31_536_000


class UnsupportedSchemaError(ValueError):
    """The schema asks for something that this generator cannot write, or contradicts itself."""


class Drawing:
    """One item's text and its own deterministic source of chance."""

    __slots__ = ("_room", "_state", "_stems", "text")

    def __init__(self, seed: int, text: str) -> None:
        self._room = _MAX_ANSWER_CHARACTERS
        self._state = seed & _MASK
        self._stems: list[str] | None = None
        self.text = text

    def below(self, bound: int) -> int:
        """Draw an integer in [0, bound): splitmix64 (Steele et al., OOPSLA 2014)."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) % bound

    def spend(self, characters: int) -> None:
        """Count what is written of the answer.

        Raises:
            UnsupportedSchemaError: The answer would be too large.
        """
        self._room -= characters
        if self._room < 0:
            raise UnsupportedSchemaError(f"an answer of over {_MAX_ANSWER_CHARACTERS:,} characters")

    @property
    def stems(self) -> list[str]:
        """The text's stems, computed once."""
        if self._stems is None:
            self._stems = stems(self.text)
        return self._stems

    def excerpt(self, max_characters: int = _EXCERPT_CHARACTERS) -> str:
        """Return the beginning of the text, cut between words where there are any."""
        text = " ".join(self.text[: 4 * max_characters].split())
        if len(text) <= max_characters:
            return text
        cut = text[: max_characters + 1].rpartition(" ")[0]
        return cut or text[:max_characters]

    def numbers(self) -> list[float]:
        """Return the numbers that the text mentions."""
        found = _NUMBER.findall(self.text)
        return [float(digits) for digits in found if len(digits) <= _MAX_DIGITS]


Generate = Callable[[Drawing, int], Any]


class SchemaGenerator:
    """Compiled schema: call `generate` once for each item.

    Raises:
        UnsupportedSchemaError: At construction or in `generate`, naming what is unsupported.

    Example:
        >>> schema = {"type": "object", "properties": {"intent": {"enum": ["refund", "bug"]}}}
        >>> SchemaGenerator(schema).generate(Drawing(7, "I found a bug"))
        {'intent': 'bug'}
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._compiled_refs: dict[str, Generate] = {}
        self._parts = 0
        self._generate = self._compile(schema, "")

    def generate(self, drawing: Drawing) -> Any:
        """Write one value that satisfies the schema."""
        return self._generate(drawing, 0)

    def _compile(self, schema: Any, name: str) -> Generate:
        self._parts += 1
        if self._parts > _MAX_SCHEMA_PARTS:
            raise UnsupportedSchemaError(f"a schema of over {_MAX_SCHEMA_PARTS:,} parts")
        if schema is True or schema == {}:
            return lambda drawing, _: drawing.excerpt()
        if not isinstance(schema, Mapping):
            raise UnsupportedSchemaError("a schema that admits no value")
        if "$ref" in schema:
            return self._reference(schema["$ref"], name)
        if "const" in schema or "enum" in schema:
            return _enum([schema["const"]] if "const" in schema else schema["enum"])
        if "allOf" in schema:
            return self._compile(self._merged(schema), name)
        return self._typed(schema, name)

    def _typed(self, schema: Mapping[str, Any], name: str) -> Generate:
        for union in ("anyOf", "oneOf"):
            if union in schema:
                rest = {key: value for key, value in schema.items() if key != union}
                return self._union([{**rest, **one} for one in schema[union]], name)
        kind = schema.get("type") or _implied_type(schema)
        if isinstance(kind, list):
            return self._union([{**schema, "type": one} for one in kind], name)
        compilers: dict[str, Callable[[], Generate]] = {
            "object": lambda: self._object(schema),
            "array": lambda: self._array(schema, name),
            "string": lambda: _string(schema),
            "number": lambda: _number(schema, is_integer=False),
            "integer": lambda: _number(schema, is_integer=True),
            "boolean": lambda: _boolean(name),
            "null": lambda: lambda _, __: None,
        }
        if kind not in compilers:
            raise UnsupportedSchemaError(f"type {kind!r}")
        return compilers[kind]()

    def _reference(self, reference: str, name: str) -> Generate:
        # A schema may refer to itself: the name is taken before the target is compiled, and
        # looked up when a value is written.
        def follow(drawing: Drawing, depth: int) -> Any:
            return self._compiled_refs[reference](drawing, depth)

        if reference not in self._compiled_refs:
            self._compiled_refs[reference] = follow
            self._compiled_refs[reference] = self._compile(self._resolve(reference), name)
        return follow

    def _resolve(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedSchemaError(f"$ref {reference!r}: only references inside the schema")
        target: Any = self._root
        for step in reference[1:].split("/")[1:]:
            plain = step.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(plain)] if isinstance(target, list) else target[plain]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UnsupportedSchemaError(f"$ref {reference!r} leads nowhere") from None
        return target

    def _merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {key: schema[key] for key in schema if key != "allOf"}
        for part in schema["allOf"]:
            opened = self._resolve(part["$ref"]) if "$ref" in part else part
            for key, value in opened.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *value]
                else:
                    merged[key] = value
        return merged

    def _union(self, options: list[Any], name: str) -> Generate:
        compiled = [self._compile(option, name) for option in options]
        null_at = [i for i, one in enumerate(options) if one.get("type") == "null"]
        values = [one for i, one in enumerate(compiled) if i not in null_at]
        if not values:
            return lambda _, __: None

        def union(drawing: Drawing, depth: int) -> Any:
            if null_at and (depth > _MAX_DEPTH or drawing.below(8) == 0):
                return None
            return values[drawing.below(len(values))](drawing, depth)

        return union

    def _object(self, schema: Mapping[str, Any]) -> Generate:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        extra = schema.get("additionalProperties", True)
        fields = [(name, self._compile(one, name), name in required)
                  for name, one in properties.items()]  # fmt: skip
        for name in required - set(properties):
            if extra is False:
                raise UnsupportedSchemaError(f"required {name!r} is not admitted")
            fields.append((name, self._compile(extra, name), True))

        names_characters = sum(map(len, properties)) + _VALUE_CHARACTERS * len(fields)

        def write(drawing: Drawing, depth: int) -> dict[str, Any]:
            drawing.spend(names_characters)
            too_deep = depth > _MAX_DEPTH
            return {
                name: field(drawing, depth + 1)
                for name, field, is_required in fields
                if is_required or not too_deep
            }

        return write

    def _array(self, schema: Mapping[str, Any], name: str) -> Generate:
        first = [self._compile(one, name) for one in schema.get("prefixItems", ())]
        rest_schema = schema.get("items", True)
        rest = None if rest_schema is False else self._compile(rest_schema, name)
        least: int = schema.get("minItems", 0)
        most: int = schema.get("maxItems", max(3, least))
        is_unique: bool = schema.get("uniqueItems", False)
        if least > most or (rest is None and least > len(first)):
            raise UnsupportedSchemaError("an array with more items at least than at most")

        def write(drawing: Drawing, depth: int) -> list[Any]:
            length = least if depth > _MAX_DEPTH else min(most, max(least, 1 + drawing.below(3)))
            values = [one(drawing, depth + 1) for one in first[:most]]
            for _ in range(20 * max(1, length)):
                if rest is None or len(values) >= length:
                    break
                drawing.spend(_VALUE_CHARACTERS)
                value = rest(drawing, depth + 1)
                if not (is_unique and value in values):
                    values.append(value)
                elif len(values) >= least:
                    break
            return values

        return write


def _implied_type(schema: Mapping[str, Any]) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if "minimum" in schema or "maximum" in schema or "multipleOf" in schema:
        return "number"
    return "string"


def _enum(values: list[Any]) -> Generate:
    if not values:
        raise UnsupportedSchemaError("an enum without values")
    chooser = LabelChooser([value if isinstance(value, str) else "" for value in values])
    longest = max(len(repr(value)) for value in values)

    def choose(drawing: Drawing, _: int) -> Any:
        drawing.spend(longest)
        best = chooser.best(drawing.stems)
        # In arrays and without any match, chance decides: else every tag would be the same.
        return values[drawing.below(len(values)) if best is None else best]

    return choose


def _boolean(name: str) -> Generate:
    wanted = set(stems(name)) - {"i", "has", "need", "should"}

    def write(drawing: Drawing, _: int) -> bool:
        return not wanted.isdisjoint(drawing.stems) or drawing.below(6) == 0

    return write


def _number(schema: Mapping[str, Any], *, is_integer: bool) -> Generate:
    step = schema.get("multipleOf") or (1 if is_integer else 0.01)
    low, high = _bounds(schema, is_integer=is_integer)
    if is_integer:
        step = int(step) if float(step).is_integer() else step
    first, last = math.ceil(round(low / step, 9)), math.floor(round(high / step, 9))
    first += int("exclusiveMinimum" in schema and first * step <= schema["exclusiveMinimum"])
    last -= int("exclusiveMaximum" in schema and last * step >= schema["exclusiveMaximum"])
    if first > last:
        if is_integer or "multipleOf" in schema or low > high:
            raise UnsupportedSchemaError("no number lies between the bounds")
        return lambda _, __: (low + high) / 2

    def write(drawing: Drawing, _: int) -> float:
        for mentioned in drawing.numbers():
            nth = round(mentioned / step)
            if first <= nth <= last and math.isclose(nth * step, mentioned, abs_tol=1e-9):
                return nth * step if is_integer else round(nth * step, 10)
        nth = first + drawing.below(last - first + 1)
        return int(nth * step) if is_integer else round(nth * step, 10)

    return write


def _bounds(schema: Mapping[str, Any], *, is_integer: bool) -> tuple[float, float]:
    span = 10 if is_integer else 1
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        low = 0 if high is None or high >= 0 else high - span
    if high is None:
        high = low + max(span, schema.get("multipleOf", 0))
    return low, high


def _string(schema: Mapping[str, Any]) -> Generate:
    least: int = schema.get("minLength", 0)
    most: int = schema.get("maxLength", max(_EXCERPT_CHARACTERS, least))
    if least > most:
        raise UnsupportedSchemaError("minLength is above maxLength")
    write = _FORMATS.get(schema.get("format", ""))
    pattern = schema.get("pattern")
    if pattern is not None:
        compiled = bounded_pattern(pattern)
        if compiled is None:
            raise UnsupportedSchemaError(f"pattern {pattern[:100]!r}: none, or too involved")
        return _matching(compiled, least, most)
    if write is not None:
        formatted = write
        return lambda drawing, _: formatted(drawing)

    def excerpt(drawing: Drawing, _: int) -> str:
        text = drawing.excerpt(most)
        drawing.spend(max(least, len(text)))
        while len(text) < least:
            text = f"{text} {drawing.text or 'and so on'}".strip()[: max(least, most)]
            text = text.ljust(least, ".") if len(text) >= least - 1 else text
        return text[:most]

    return excerpt


def _matching(pattern: re.Pattern[str], least: int, most: int) -> Generate:
    """Look through usual values for one that matches; a pattern is not solved."""
    longest = min(most, MAX_MATCHED_CHARACTERS)

    def write(drawing: Drawing, _: int) -> str:
        digits = f"{drawing.below(10**12):012d}"
        letters = "".join(chr(65 + drawing.below(26)) for _ in range(8))
        candidates = [drawing.excerpt(most), *drawing.text.split()]
        candidates += [one(drawing) for one in _FORMATS.values()]
        for size in range(1, 13):
            candidates += [digits[:size], letters[:size], letters[:size].lower()]
            candidates += [f"{letters[:n]}{mark}{digits[:size]}" for n in (1, 2, 3)
                           for mark in ("", "-", "_")]  # fmt: skip
            candidates += [f"+{digits[:size]}", f"#{digits[:size]}", f"v{digits[:size]}"]
        for candidate in candidates:
            if least <= len(candidate) <= longest and pattern.search(candidate):
                return candidate
        raise UnsupportedSchemaError(f"pattern {pattern.pattern!r}")

    return write


def _moment(drawing: Drawing) -> datetime:
    return _EPOCH + timedelta(seconds=drawing.below(_SECONDS_PER_YEAR))


def _hex(drawing: Drawing, digits: int) -> str:
    return "".join(f"{drawing.below(16):x}" for _ in range(digits))


def _uuid(drawing: Drawing) -> str:
    parts = (_hex(drawing, 8), _hex(drawing, 4), f"4{_hex(drawing, 3)}", f"8{_hex(drawing, 3)}")
    return "-".join((*parts, _hex(drawing, 12)))


_FORMATS: dict[str, Callable[[Drawing], str]] = {
    "date": lambda drawing: _moment(drawing).strftime("%Y-%m-%d"),
    "date-time": lambda drawing: _moment(drawing).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "time": lambda drawing: _moment(drawing).strftime("%H:%M:%SZ"),
    "duration": lambda drawing: f"PT{1 + drawing.below(90)}M",
    "email": lambda drawing: f"user{drawing.below(1000)}@example.com",
    "hostname": lambda drawing: f"host{drawing.below(1000)}.example.com",
    "ipv4": lambda drawing: f"192.0.2.{1 + drawing.below(254)}",
    "ipv6": lambda drawing: f"2001:db8::{_hex(drawing, 4)}",
    "uri": lambda drawing: f"https://example.com/{_hex(drawing, 8)}",
    "uuid": _uuid,
}
