"""Waiting with a process: all waits of one process share the core's watcher of the account."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect_batchrouter.planning import Plan

if TYPE_CHECKING:
    from prefect_batchrouter.showing import ProgressBar

_SHOW_EVERY_S = 5.0


def wait_for_batches(
    plan: Plan, batch_ids: Sequence[str], until: datetime, bar: "ProgressBar"
) -> bool:
    """Block until all batches have ended, at most until a wall-clock time.

    Returns:
        False when the time has come first.

    Raises:
        BatchrouterError: The API refuses in a way that waiting does not cure.
    """
    from batchrouter import Client  # noqa: PLC0415 - loads httpx
    from batchrouter.run import Progress, watcher_for  # noqa: PLC0415 - loads the tables' libraries

    with Client(plan.settings) as client:
        return watcher_for(plan.settings).wait(
            client,
            batch_ids,
            until=until,
            listen=lambda done, total: bar(Progress("wait", done, total, "items")),
        )


async def wait_for_batches_async(
    plan: Plan, batch_ids: Sequence[str], until: datetime, bar: "ProgressBar"
) -> bool:
    """Do what `wait_for_batches` does, without holding a thread."""
    from batchrouter import AsyncClient  # noqa: PLC0415 - loads httpx
    from batchrouter.run import Progress, async_watcher_for  # noqa: PLC0415 - as above

    newest: list[Progress] = []

    def listen(done: int, total: int) -> None:
        newest[:] = [Progress("wait", done, total, "items")]

    async def show() -> None:
        while True:
            await asyncio.sleep(_SHOW_EVERY_S)
            if newest:
                await asyncio.to_thread(bar, newest[0])

    showing = asyncio.create_task(show())
    try:
        async with AsyncClient(plan.settings) as client:
            return await async_watcher_for(plan.settings).wait(
                client, batch_ids, until=until, listen=listen
            )
    finally:
        showing.cancel()


def is_past(moment: datetime) -> bool:
    """True when a wall-clock time has come."""
    return datetime.now(UTC) >= moment
