"""A job file's text → plain data, with the line of every field; nothing is guessed about types.

YAML follows the 1.2 core schema: `yes`, `no`, `on` and dates stay text (PyYAML reads them as
booleans and dates), fractions become `Decimal` so that `budget: 25.00` is exact, a key that comes
twice is refused. TOML and JSON get the same treatment of fractions and of repeated keys.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchrouter.job.problems import job_error, path_text

if TYPE_CHECKING:
    import yaml

MAX_NODES = 100_000
"""A job file is written by people; far more values than this come only from nested aliases."""

Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True, slots=True)
class Document:
    """A job file's content, and the line (from 1) at which each path stands; empty when unknown."""

    data: dict[str, Any]
    lines: Lines = field(default_factory=dict)


def read_document(path: Path) -> Document:
    """Read a `.yaml`, `.yml`, `.toml` or `.json` file.

    Raises:
        JobError: No such file, not UTF-8, an unknown extension, a syntax error or a repeated key
            (with its line), or something else than a mapping at the top.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise job_error(
            [f"cannot tell the format; name it {', '.join(_READERS)}"], origin=str(path)
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise job_error([f"cannot be read: {error.strerror}"], origin=str(path)) from None
    except UnicodeDecodeError as error:
        raise job_error(
            [f"is not UTF-8 at byte {error.start}; save it so"], origin=str(path)
        ) from None
    return reader(text, str(path))


def parse_yaml(text: str, origin: str = "the job") -> Document:
    r"""Parse YAML by the 1.2 core schema.

    Raises:
        JobError: As `read_document`.

    Example:
        >>> parse_yaml("day: 2026-11-22\nlabels: [yes, no]\nbudget: 25.00").data
        {'day': '2026-11-22', 'labels': ['yes', 'no'], 'budget': Decimal('25.00')}
    """
    import yaml  # noqa: PLC0415 - a job that is written in Python needs no YAML

    try:
        root = yaml.compose(text, Loader=_core_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise job_error([f"is not YAML: {problem}{line}"], origin=origin) from None
    lines: Lines = {}
    data = _Builder(origin, lines).build(root, ()) if root is not None else None
    return Document(_top(data, origin), lines)


def _parse_toml(text: str, origin: str) -> Document:
    try:
        return Document(tomllib.loads(text, parse_float=Decimal))
    except tomllib.TOMLDecodeError as error:
        raise job_error([f"is not TOML: {error}"], origin=origin) from None


def _parse_json(text: str, origin: str) -> Document:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(items)
        if len(seen) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise job_error([f"{twice}: stands twice; keep one"], origin=origin)
        return seen

    try:
        data = json.loads(text, parse_float=Decimal, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        told = f"is not JSON: {error.msg} (line {error.lineno})"
        raise job_error([told], origin=origin) from None
    return Document(_top(data, origin))


def _top(data: Any, origin: str) -> dict[str, Any]:
    if isinstance(data, dict):
        return data
    raise job_error(["must be a mapping of fields, such as `name: label-tickets`"], origin=origin)


_READERS: dict[str, Callable[[str, str], Document]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": _parse_toml,
    ".json": _parse_json,
}

_NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")
)
_STR = "tag:yaml.org,2002:str"
# https://yaml.org/spec/1.2.2/#1032-tag-resolution
_CORE: tuple[tuple[str, re.Pattern[str], Iterable[str | None]], ...] = (
    (_NULL, re.compile(r"^(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


def _core_loader() -> "type[yaml.SafeLoader]":
    import yaml  # noqa: PLC0415 - see parse_yaml

    loader = type("CoreSchemaLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    for tag, pattern, first in _CORE:
        loader.add_implicit_resolver(tag, pattern, first)
    return loader


class _Builder:
    """Turns YAML's node graph into data, noting lines."""

    def __init__(self, origin: str, lines: Lines) -> None:
        self._origin = origin
        self._lines = lines
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: "yaml.Node", path: tuple[str | int, ...]) -> Any:
        import yaml  # noqa: PLC0415 - see parse_yaml

        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open:
            self._refuse(node, path, "aliases make it endless; write the values out")
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, at)) for at, child in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        import yaml  # noqa: PLC0415 - see parse_yaml

        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            # A field's name is text whatever it looks like: `on:` and `1:` are names, too.
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, path, "a field's name must be text")
            key = str(key_node.value)
            if key in built:
                first = self._lines[*path, key]
                self._refuse(
                    key_node, (*path, key), f"stands twice, first in line {first}; keep one"
                )
            self._lines[*path, key] = key_node.start_mark.line + 1
            built[key] = self.build(value_node, (*path, key))
        return built

    def _scalar(self, node: Any, path: tuple[str | int, ...]) -> Any:
        text, tag = str(node.value), str(node.tag)
        if tag == _STR:
            return text
        if tag == _NULL:
            return None
        if tag == _BOOL:
            return text.lower() == "true"
        if tag == _INT:
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        if tag == _FLOAT:
            return Decimal(text.lower().replace(".inf", "Infinity").replace(".nan", "NaN"))
        return self._refuse(node, path, f"the tag {tag} has no meaning here; leave it out")

    def _refuse(self, node: Any, path: tuple[str | int, ...], problem: str) -> None:
        where = f"{path_text(path)}: " if path else ""
        line = node.start_mark.line + 1
        raise job_error([f"{where}{problem} (line {line})"], origin=self._origin)
