"""Ids: a prefix that says what it is, and 128 random bits in hex (contract section 2)."""

import secrets
from typing import Literal

__all__ = ["new_id"]


def new_id(
    prefix: Literal["qlock", "file", "batch", "item", "evt", "qlane", "err", "key", "ws", "req"],
) -> str:
    """Mint an id that nobody can guess.

    Example:
        >>> len(new_id("batch"))
        38
    """
    return f"{prefix}_{secrets.token_hex(16)}"
