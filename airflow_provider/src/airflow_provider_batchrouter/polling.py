"""One poller for all waits of a triggerer process on one connection.

The connection is read, the client opened and the list asked once, for however many tasks are
deferred on it. Nothing here blocks the event loop: what could is done in a thread.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_batchrouter.hooks import BatchrouterHook

if TYPE_CHECKING:
    from batchrouter import AsyncClient, Settings
    from batchrouter.run import AsyncWatcher, WaitMode


@dataclass(slots=True)
class _Account:
    """What the waits on one connection share, while there are any."""

    client: "AsyncClient"
    watcher: "AsyncWatcher"
    waits: int = 0


class _Accounts:
    """The accounts of one event loop, by connection."""

    def __init__(self) -> None:
        self._open: dict[str, _Account] = {}
        self._opening = asyncio.Lock()

    async def enter(self, conn_id: str) -> _Account:
        async with self._opening:
            account = self._open.get(conn_id)
            if account is None:
                account = self._open[conn_id] = await _open_account(conn_id)
            account.waits += 1
            return account

    async def leave(self, conn_id: str, account: _Account) -> None:
        account.waits -= 1
        if account.waits == 0:
            # Closed with its last wait, so that a changed connection counts from the next on.
            self._open.pop(conn_id, None)
            await account.client.close()


_of_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Accounts]" = WeakKeyDictionary()


async def wait_for_batches(
    conn_id: str, batch_ids: Sequence[str], *, until: datetime, mode: "WaitMode"
) -> bool:
    """Wait until all batches are terminal, at most until a wall-clock time.

    Returns:
        True when all are; False when the time has come.

    Raises:
        BatchrouterError: The connection is wrong, or the API refuses in a way that waiting does
            not cure. What passes is waited out.
    """
    accounts = _of_loop.setdefault(asyncio.get_running_loop(), _Accounts())
    account = await accounts.enter(conn_id)
    try:
        return await account.watcher.wait(account.client, batch_ids, until=until, mode=mode)
    finally:
        await accounts.leave(conn_id, account)


async def _open_account(conn_id: str) -> _Account:
    settings = await BatchrouterHook(conn_id).aget_settings()
    client = await asyncio.to_thread(_open_client, settings)
    from batchrouter.run import async_watcher_for  # noqa: PLC0415 - loaded in the thread by now

    return _Account(client, async_watcher_for(settings))


def _open_client(settings: "Settings") -> "AsyncClient":
    """Import and connect what takes a while: the HTTP library, certificates, the inbox."""
    from batchrouter import AsyncClient  # noqa: PLC0415 - loads httpx
    from batchrouter.run import watcher_for  # noqa: PLC0415 - loads SQLAlchemy with an inbox

    watcher_for(settings)  # opens the inbox, which both kinds of watchers share
    return AsyncClient(settings)
