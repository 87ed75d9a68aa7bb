"""The receiver: webhooks in, flow runs awake. A bare ASGI app, run by one command or by yours.

It is the core's receiver, with an inbox that also wakes: a delivery is verified over its raw
body, kept, and answered at once; Prefect is asked after the answer, for as long as it takes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.client.orchestration import PrefectClient

from batchrouter.webhooks.inbox import KEPT, Inbox, open_inbox
from batchrouter.webhooks.receiver import AsgiApp, Receive, Scope, Send, receiver
from batchrouter.webhooks.signing import Event
from prefect_batchrouter.showing import emit_batch_event
from prefect_batchrouter.waking import pauses, sleepers, wake_all

_log = logging.getLogger("prefect_batchrouter.receiving")

ENDS = frozenset({"batch.completed", "batch.failed", "batch.cancelled", "batch.expired"})
"""Events after which a batch does not change any more; only these wake."""


def waking_receiver(
    secret: str, *, inbox_url: str = "memory://batchrouter-inbox", resume: bool = True
) -> AsgiApp:
    """Make an ASGI app that resumes the flow runs which sleep for a batch.

    ``POST`` to any path; answers as the core's receiver. Each end of a batch is also told to
    Prefect as an event, `batchrouter.batch.completed` and so on, with the flow runs that wait.

    Args:
        secret: What the batches were created with.
        inbox_url: Where events are kept. In one that outlives the process, what was answered
            but not woken before a crash is woken at the next start.
        resume: False tells Prefect the event and leaves the rest to an automation.

    Raises:
        ConfigError: The secret is empty, or the inbox cannot be opened.

    Example:
        Run it with ``uvicorn.run(waking_receiver(secret))``; Prefect is found by
        ``PREFECT_API_URL``.
    """
    return _WakingReceiver(open_inbox(inbox_url), secret, resume=resume)


class _WakingReceiver:
    """Holds one Prefect client and the wakes that are under way."""

    def __init__(self, inbox: Inbox, secret: str, *, resume: bool) -> None:
        self._inbox = inbox
        self._app = receiver(_Waking(inbox, self), secret)
        self._resume = resume
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: PrefectClient | None = None
        self._closing = AsyncExitStack()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._loop = asyncio.get_running_loop()
            await self._app(scope, receive, send)
            return
        async with self._living():
            await self._app(scope, receive, send)

    @asynccontextmanager
    async def _living(self) -> AsyncGenerator[None]:
        self._loop = asyncio.get_running_loop()
        events, _ = await asyncio.to_thread(self._inbox.events_since, None)
        for event in events:
            self.begin(event, is_news=False)
        try:
            yield
        finally:
            for each in self._under_way.values():
                each.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)
            await self._closing.aclose()

    def heard(self, event: Event, *, is_news: bool) -> None:
        """Take an event that is kept; called from a thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self.begin(event, is_news=is_news))

    def begin(self, event: Event, *, is_news: bool) -> None:
        """Wake for an event, unless that is under way."""
        if event.type not in ENDS or event.batch_id in self._under_way:
            return
        task = asyncio.get_running_loop().create_task(self._wake(event, is_news=is_news))
        self._under_way[event.batch_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(event.batch_id, None))

    async def _wake(self, event: Event, *, is_news: bool) -> None:
        async for _ in pauses(f"wake for {event.batch_id}"):
            try:
                client = await self._prefect()
                if is_news:
                    waiting = await sleepers(client, event.batch_id)
                    _tell(event, [str(each.id) for each in waiting])
                    is_news = False
                if self._resume:
                    await wake_all(client, event.batch_id)
            except Exception as error:  # noqa: BLE001 - Prefect is away: whatever its client raises
                _log.warning("Prefect does not answer: %s", error)
            else:
                return

    async def _prefect(self) -> PrefectClient:
        if self._client is None:
            self._client = await self._closing.enter_async_context(get_client())
        return self._client


class _Waking:
    """The core's inbox, which tells the receiver of what it keeps."""

    def __init__(self, inbox: Inbox, told: _WakingReceiver) -> None:
        self._inbox = inbox
        self._told = told

    def put(self, event: Event) -> bool:
        is_news = self._inbox.put(event)
        # A known one is woken again: its sender may have missed our answer to the first.
        self._told.heard(event, is_news=is_news)
        return is_news

    def events_since(self, cursor: str | None) -> tuple[list[Event], str]:
        return self._inbox.events_since(cursor)

    def prune(self, older_than: timedelta = KEPT) -> int:
        return self._inbox.prune(older_than)

    def close(self) -> None:
        self._inbox.close()


def _tell(event: Event, flow_run_ids: list[str]) -> None:
    payload: dict[str, Any] = {
        name: event.data[name]
        for name in ("state", "items_total", "items_completed", "items_failed", "cost_usd")
        if name in event.data
    }
    emit_batch_event(
        event.type.removeprefix("batch."),
        event.batch_id,
        flow_run_ids=flow_run_ids,
        payload={name: str(value) for name, value in payload.items()},
    )
