"""Regular expressions that a caller chose, tried only where that takes milliseconds at most.

Python's `re` may take for ever, and holds the interpreter while it does. Without repeated groups,
and with few open repeats over short text, it cannot.
"""

import re

__all__ = ["MAX_MATCHED_CHARACTERS", "bounded_pattern"]

#: No longer text may be matched with a pattern that `bounded_pattern` has admitted.
MAX_MATCHED_CHARACTERS = 40

_MAX_PATTERN_CHARACTERS = 500
_MAX_OPEN_REPEATS = 3
_MAX_OPTIONAL_PARTS = 3

#: A group that is repeated; or one of those that change how the rest is read, such as `(?x)`.
_INVOLVED = re.compile(r"\)[*+{]|\(\?[^:=!<P]")
_OPEN_REPEAT = re.compile(r"[*+]|\{\d*,")


def bounded_pattern(pattern: str) -> re.Pattern[str] | None:
    r"""Compile a pattern; None when it is none, or could take long.

    Example:
        >>> bounded_pattern(r"^[A-Z]{3}-\d{4}$") is None
        False
        >>> bounded_pattern(r"^(a+)+$") is None
        True
    """
    optional_parts = pattern.replace("(?", "(").count("?")
    if (
        len(pattern) > _MAX_PATTERN_CHARACTERS
        or _INVOLVED.search(pattern)
        or len(_OPEN_REPEAT.findall(pattern)) > _MAX_OPEN_REPEATS
        or optional_parts > _MAX_OPTIONAL_PARTS
    ):
        return None
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None
