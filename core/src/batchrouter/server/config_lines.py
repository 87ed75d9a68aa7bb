"""Where a value stands in a TOML file, for errors that a person can go to.

The TOML parser keeps no positions, so headers and keys are read once more, by line. A value
inside an inline table or array is found as the line of the key that holds it.
"""

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["line_of"]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=""")

Path = tuple[str | int, ...]


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    r"""Find the line (from 1) of the nearest thing that holds the value at a path.

    Args:
        text: The TOML document.
        path: Keys and positions, such as `("lanes", 0, "models", 1, "name")`.

    Returns:
        None when not even the first key stands in the document.

    Example:
        >>> line_of("[[lanes]]\nregion = 'eu'\n[[lanes]]\nregion = 7\n", ("lanes", 1, "region"))
        4
    """
    places = _places(text)
    wanted = tuple(path)
    while wanted:
        if wanted in places:
            return places[wanted]
        wanted = wanted[:-1]
    return None


def _places(text: str) -> dict[Path, int]:
    places: dict[Path, int] = {}
    tables: Counter[Path] = Counter()
    table: Path = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _table(header[2], tables, is_array=header[1] == "[[")
            places.setdefault(table, number)
        elif key := _KEY.match(line):
            places.setdefault((*table, *_split(key[1])), number)
    return places


def _table(name: str, tables: Counter[Path], *, is_array: bool) -> Path:
    """Turn a header into a path: of a repeated table, the newest one is meant."""
    path: Path = ()
    parts = _split(name)
    for part in parts[:-1]:
        path = (*path, part)
        if tables[path]:
            path = (*path, tables[path] - 1)
    path = (*path, parts[-1])
    if is_array:
        tables[path] += 1
        path = (*path, tables[path] - 1)
    return path


def _split(name: str) -> list[str]:
    return [part.strip().strip("\"'") for part in name.split(".")]
