"""Write a mapping as TOML: a test states a router's config where it uses it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast


def to_toml(config: Mapping[str, Any]) -> str:
    """Write one line for each key; nested tables are written inline.

    None is left out: TOML has no such value.

    Example:
        >>> print(to_toml({"credits": {"initial_usd": "5"}, "lanes": [{"region": "eu"}]}))
        "credits" = {"initial_usd" = "5"}
        "lanes" = [{"region" = "eu"}]
    """
    return "\n".join(f"{_key(name)} = {_value(value)}" for name, value in _present(config))


def _present(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in table.items() if value is not None]


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in _present(table)) + "}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the DEL character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(each) for each in cast("Sequence[Any]", value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
