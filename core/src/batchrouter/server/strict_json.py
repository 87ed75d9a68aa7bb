"""JSON read exactly: what two parsers could read differently is refused, not guessed at.

Refused are repeated keys, NaN and infinities, lone surrogates, a byte-order mark, bytes that
are not UTF-8, and nesting beyond 64 (contract section 4).
"""

import json
import math
from typing import Any, NoReturn

__all__ = ["MAX_DEPTH", "StrictJsonError", "depth_of", "loads"]

MAX_DEPTH = 64
"""Nested objects and arrays, the outermost one counted (contract section 2)."""


class StrictJsonError(ValueError):
    """Not JSON as the contract wants it; `code` is stable, the message is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def loads(data: bytes) -> Any:
    """Parse one JSON document.

    Raises:
        StrictJsonError: With the code `invalid_utf8`, `byte_order_mark`, `invalid_json`,
            `invalid_number`, `repeated_key`, `lone_surrogate` or `too_deep`.

    Example:
        >>> loads(b'{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> loads(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        batchrouter.server.strict_json.StrictJsonError: the key 'a' stands twice in an object
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise StrictJsonError("byte_order_mark", "starts with a byte-order mark")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise StrictJsonError(
            "invalid_utf8", f"not UTF-8 at byte {error.start}: {error.reason}"
        ) from None
    try:
        value = _DECODER.decode(text)
    except StrictJsonError:
        raise
    except json.JSONDecodeError as error:
        raise StrictJsonError("invalid_json", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        # int() refuses thousands of digits.
        raise StrictJsonError("invalid_number", "holds a number that is too long") from None
    if depth_of(value) > MAX_DEPTH:
        raise _too_deep()
    # A surrogate can only come from an escape: UTF-8 itself cannot hold one.
    if "\\u" in text:
        _refuse_lone_surrogates(value)
    return value


def depth_of(value: Any) -> int:
    """Count nested objects and arrays; a plain value has depth 0.

    Example:
        >>> depth_of({"a": [1]})
        2
    """
    depth = 0
    level = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJsonError("repeated_key", f"the key {key!r} stands twice in an object")
            seen.add(key)
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError("invalid_number", f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise StrictJsonError("invalid_number", f"{digits} is beyond the range of a double")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
)


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise StrictJsonError("lone_surrogate", "holds a lone surrogate escape") from None


def _too_deep() -> StrictJsonError:
    return StrictJsonError("too_deep", f"nested deeper than {MAX_DEPTH}")
