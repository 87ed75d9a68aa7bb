"""Blocking work beside an event loop, finished before anyone moves on.

A thread cannot be interrupted. When the waiting task is cancelled, `in_thread` still waits
for the short piece of work in hand, so that no file is closed under a thread that reads it.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; a cancellation takes effect when it has ended."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
