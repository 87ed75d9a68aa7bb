"""Prefect's functions that choose between blocking and awaiting by their caller, made to block.

They look at the flow around them: on a thread of an async flow they would hand back a coroutine
that nobody awaits. Their way to say no to that is an argument that no signature shows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from prefect.blocks.core import Block

_B = TypeVar("_B", bound=Block)


def blocking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make such a function block, whoever calls it."""
    return partial(function, _sync=True)


def load_block(kind: type[_B], name: str) -> _B:
    """Load a saved block.

    Raises:
        ValueError: No block of this kind is saved under the name.
    """
    return cast("_B", blocking(kind.load)(name))
