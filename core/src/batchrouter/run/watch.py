"""Waiting for any number of batches without a thread, a request or a poll for each.

One watcher per process and account serves every wait: it pages the list by `updated_after`,
so that its cost grows with what changes and not with who waits; it reads by id only what the
list did not show for long; and it looks into the inbox, which wakes it early. A webhook is a
hint: the API's state decides.

`WatchBook` says what to ask next; `Watcher` and `AsyncWatcher` only carry the questions out.
Whoever waits takes its turn as the one that asks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batchrouter.errors import BatchrouterError, NotFoundError
from batchrouter.killpoints import reached
from batchrouter.run.watch_book import (
    ListChanged,
    Question,
    ReadInbox,
    Retrieve,
    Wait,
    WaitMode,
    WatchBook,
)

if TYPE_CHECKING:
    from batchrouter.api.client import AsyncClient, Client
    from batchrouter.webhooks.inbox import Inbox

_log = logging.getLogger(__name__)

_PAGE = 1000
_TICK_S = 0.25
_BETWEEN_TURNS_S = 0.2
"""However many wait, the book is asked what is due a few times a second, not a few times each."""


Listener = Callable[[int, int], None]
"""Called with (finished items, all items) of one wait after each look."""


def _tell(book: WatchBook, wait: Wait, listen: Listener | None) -> None:
    if listen is None:
        return
    batches = [book.known[each] for each in wait.batch_ids if each in book.known]
    if batches:
        counts = [each.counts for each in batches if each.counts is not None]
        listen(
            sum(each.completed + each.failed for each in counts),
            sum(each.total for each in counts),
        )


class Watcher:
    """Serves every blocking wait of this process for one account."""

    def __init__(
        self, *, poll_interval_s: float, inbox: "Inbox | None", inbox_interval_s: float = 0.0
    ) -> None:
        self._book = WatchBook(poll_interval_s, inbox is not None, inbox_interval_s)
        self._inbox = inbox
        self._turn = threading.Lock()
        self._next_turn_s = 0.0
        self._news = threading.Condition()

    def wait(
        self,
        client: "Client",
        batch_ids: Sequence[str],
        *,
        until: datetime,
        mode: WaitMode = "both",
        listen: Listener | None = None,
    ) -> bool:
        """Block until all batches are terminal, at most until a wall-clock time.

        Returns:
            True when all are known to be terminal; False when the time has come.

        Raises:
            BatchrouterError: The API refuses in a way that waiting does not cure.
        """
        with self._news:
            wait = self._book.begin(batch_ids, mode, time.monotonic())
        try:
            while not self._book.is_over(wait):
                left_s = (until - datetime.now(UTC)).total_seconds()
                if left_s <= 0:
                    return False
                if time.monotonic() >= self._next_turn_s and self._turn.acquire(blocking=False):
                    try:
                        self._ask(client)
                        self._next_turn_s = time.monotonic() + _BETWEEN_TURNS_S
                    finally:
                        self._turn.release()
                    _tell(self._book, wait, listen)
                with self._news:
                    self._news.wait(min(_TICK_S, left_s))
            return True
        finally:
            with self._news:
                self._book.end(wait)
                self._news.notify_all()

    def _ask(self, client: "Client") -> None:
        reached("wait.during")
        cycle = self._book.cycle(time.monotonic())
        answer: Any = None
        try:
            while True:
                answer = self._answer(client, cycle.send(answer))
        except StopIteration:
            pass
        except BatchrouterError as error:
            if not error.retryable:
                raise
            _log.warning("a look at the batches failed and is repeated: %s", error)
            self._book.after_failure(time.monotonic())
        with self._news:
            self._news.notify_all()

    def _answer(self, client: "Client", question: Question) -> Any:
        match question:
            case ReadInbox():
                return self._inbox.events_since(question.cursor) if self._inbox else ([], None)
            case Retrieve():
                try:
                    return client.retrieve_batch(question.batch_id)
                except NotFoundError:
                    return None
            case ListChanged():
                return client.list_batches(
                    limit=_PAGE,
                    after=question.after,
                    updated_after=question.updated_after,
                    view="summary",
                )


class AsyncWatcher:
    """Serves every wait of one event loop for one account."""

    def __init__(
        self, *, poll_interval_s: float, inbox: "Inbox | None", inbox_interval_s: float = 0.0
    ) -> None:
        self._book = WatchBook(poll_interval_s, inbox is not None, inbox_interval_s)
        self._inbox = inbox
        self._turn = asyncio.Lock()
        self._next_turn_s = 0.0

    async def wait(
        self,
        client: "AsyncClient",
        batch_ids: Sequence[str],
        *,
        until: datetime,
        mode: WaitMode = "both",
        listen: Listener | None = None,
    ) -> bool:
        """Wait as `Watcher.wait` does, without blocking the loop."""
        wait = self._book.begin(batch_ids, mode, time.monotonic())
        try:
            while not self._book.is_over(wait):
                left_s = (until - datetime.now(UTC)).total_seconds()
                if left_s <= 0:
                    return False
                if time.monotonic() >= self._next_turn_s and not self._turn.locked():
                    async with self._turn:
                        await self._ask(client)
                        self._next_turn_s = time.monotonic() + _BETWEEN_TURNS_S
                    _tell(self._book, wait, listen)
                await asyncio.sleep(min(_TICK_S, left_s))
            return True
        finally:
            self._book.end(wait)

    async def _ask(self, client: "AsyncClient") -> None:
        reached("wait.during")
        cycle = self._book.cycle(time.monotonic())
        answer: Any = None
        try:
            while True:
                question = cycle.send(answer)
                answer = await self._answer(client, question)
        except StopIteration:
            pass
        except BatchrouterError as error:
            if not error.retryable:
                raise
            _log.warning("a look at the batches failed and is repeated: %s", error)
            self._book.after_failure(time.monotonic())

    async def _answer(self, client: "AsyncClient", question: Question) -> Any:
        match question:
            case ReadInbox():
                if self._inbox is None:
                    return [], None
                return await asyncio.to_thread(self._inbox.events_since, question.cursor)
            case Retrieve():
                try:
                    return await client.retrieve_batch(question.batch_id)
                except NotFoundError:
                    return None
            case ListChanged():
                return await client.list_batches(
                    limit=_PAGE,
                    after=question.after,
                    updated_after=question.updated_after,
                    view="summary",
                )
