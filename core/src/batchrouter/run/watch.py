"""Waiting for any number of batches without a thread, a request or a poll for each.

One watcher per process and account serves every wait: it pages the list by `updated_after`,
so that its cost grows with what changes and not with who waits; it reads by id only what the
list did not show for long; and it looks into the inbox, which wakes it early. A webhook is a
hint: the API's state decides.

`WatchBook` holds what is known and says what to ask next; `Watcher` and `AsyncWatcher` only
carry the questions out. Whoever waits takes its turn as the one that asks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from batchrouter.errors import BatchrouterError, NotFoundError

if TYPE_CHECKING:
    from batchrouter.api.client import AsyncClient, Client
    from batchrouter.api.models import Batch, BatchPage
    from batchrouter.webhooks.inbox import Inbox
    from batchrouter.webhooks.signing import Event

_log = logging.getLogger(__name__)

WaitMode = Literal["both", "webhook", "poll"]

_PAGE = 1000
_MOST_PAGES = 100
_FIRST_LOOK_BACK = timedelta(hours=2)
"""The first list goes back further than any clock skew; later ones use the server's clock."""
_OVERLAP = timedelta(seconds=5)
_LOOK_AGAIN_S = 600.0
"""A batch that no list has shown for so long is read by its id."""
_SHORTEST_S = 0.3
_RAMP = 0.15
"""A wait polls at this share of its age, so that short batches are seen to end at once."""
_BEHIND_INBOX = 6.0
"""With an inbox, polling is the safety net: this many times slower."""
_TICK_S = 0.25
_FAILED_S = 5.0


@dataclass(frozen=True, slots=True)
class ListChanged:
    """Ask for a page of batches that changed after a time."""

    updated_after: datetime
    after: str | None


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Ask for one batch."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class ReadInbox:
    """Ask for the events that came after a cursor."""

    cursor: str | None


Question = ListChanged | Retrieve | ReadInbox
Cycle = Generator[Question, Any, None]


@dataclass(slots=True)
class _Wait:
    batch_ids: frozenset[str]
    mode: WaitMode
    since_s: float


@dataclass(slots=True)
class WatchBook:
    """Who waits for what, what is known, and what to ask next; it does nothing itself.

    Attributes:
        poll_interval_s: The longest time between two polls where there is no inbox.
        has_inbox: True when events can wake the waits.
    """

    poll_interval_s: float
    has_inbox: bool
    waits: list[_Wait] = field(default_factory=list[_Wait])
    known: dict[str, "Batch"] = field(default_factory=dict[str, "Batch"])
    _seen_s: dict[str, float] = field(default_factory=dict[str, float])
    _cursor: datetime | None = None
    _inbox_cursor: str | None = None
    _next_poll_s: float = 0.0

    def begin(self, batch_ids: Sequence[str], mode: WaitMode, now_s: float) -> _Wait:
        """Register a wait; its batches are taken to be open until something says otherwise."""
        wait = _Wait(frozenset(batch_ids), mode, now_s)
        self.waits.append(wait)
        for batch_id in batch_ids:
            self._seen_s.setdefault(batch_id, now_s)
        self._next_poll_s = min(self._next_poll_s, now_s + _SHORTEST_S)
        return wait

    def end(self, wait: _Wait) -> None:
        """Forget a wait, and what only it wanted to know."""
        self.waits.remove(wait)
        for batch_id in wait.batch_ids - self._wanted():
            self.known.pop(batch_id, None)
            self._seen_s.pop(batch_id, None)

    def is_over(self, wait: _Wait) -> bool:
        """True when every batch of the wait is known to be terminal."""
        return all(each in self.known and self.known[each].is_terminal for each in wait.batch_ids)

    def cycle(self, now_s: float) -> Cycle:
        """Ask what is due now: the inbox always, the API when its turn has come."""
        if self.has_inbox:
            yield from self._read_inbox(now_s)
        if self._polls() and now_s >= self._next_poll_s:
            yield from self._poll(now_s)
            self._next_poll_s = now_s + self._interval_s(now_s)

    def after_failure(self, now_s: float) -> None:
        """Leave the API alone for a moment."""
        self._next_poll_s = max(self._next_poll_s, now_s + _FAILED_S)

    def _wanted(self) -> set[str]:
        wanted: set[str] = set()
        for wait in self.waits:
            wanted |= wait.batch_ids
        return wanted

    def _open(self) -> set[str]:
        return {
            each
            for each in self._wanted()
            if each not in self.known or not self.known[each].is_terminal
        }

    def _polls(self) -> bool:
        return any(wait.mode != "webhook" for wait in self.waits)

    def _interval_s(self, now_s: float) -> float:
        slow = self.has_inbox and all(wait.mode != "poll" for wait in self.waits)
        longest = self.poll_interval_s * (_BEHIND_INBOX if slow else 1.0)
        youngest = min((now_s - wait.since_s for wait in self.waits), default=longest)
        return min(longest, max(_SHORTEST_S, youngest * _RAMP))

    def _read_inbox(self, now_s: float) -> Cycle:
        events: list[Event]
        events, self._inbox_cursor = yield ReadInbox(self._inbox_cursor)
        told = {event.batch_id for event in events if event.type != "batch.progress"}
        for batch_id in sorted(told & self._open()):
            yield from self._retrieve(batch_id, now_s)

    def _poll(self, now_s: float) -> Cycle:
        since = self._cursor or datetime.now(UTC) - _FIRST_LOOK_BACK
        after: str | None = None
        server_now: datetime | None = None
        for _ in range(_MOST_PAGES):
            page: BatchPage = yield ListChanged(since, after)
            self._learn_page(page, now_s)
            server_now = server_now or page.server_now
            ignores_filter = any(
                each.updated_at is None or each.updated_at < since for each in page.data
            )
            if not page.has_more or page.next_cursor is None or ignores_filter:
                break
            after = page.next_cursor
        if server_now is not None:
            self._cursor = server_now - _OVERLAP
        for batch_id in sorted(self._open()):
            if now_s - self._seen_s.get(batch_id, now_s) > _LOOK_AGAIN_S:
                yield from self._retrieve(batch_id, now_s)

    def _learn_page(self, page: "BatchPage", now_s: float) -> None:
        wanted = self._wanted()
        for batch in page.data:
            if batch.id in wanted:
                self._learn(batch, now_s)

    def _retrieve(self, batch_id: str, now_s: float) -> Cycle:
        batch: Batch | None = yield Retrieve(batch_id)
        if batch is not None:
            self._learn(batch, now_s)

    def _learn(self, batch: "Batch", now_s: float) -> None:
        self.known[batch.id] = batch
        self._seen_s[batch.id] = now_s


Listener = Callable[[int, int], None]
"""Called with (finished items, all items) of one wait after each look."""


def _tell(book: WatchBook, wait: _Wait, listen: Listener | None) -> None:
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

    def __init__(self, *, poll_interval_s: float, inbox: "Inbox | None") -> None:
        self._book = WatchBook(poll_interval_s, inbox is not None)
        self._inbox = inbox
        self._turn = threading.Lock()
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
                if self._turn.acquire(blocking=False):
                    try:
                        self._ask(client)
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

    def __init__(self, *, poll_interval_s: float, inbox: "Inbox | None") -> None:
        self._book = WatchBook(poll_interval_s, inbox is not None)
        self._inbox = inbox
        self._turn = asyncio.Lock()

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
                if not self._turn.locked():
                    async with self._turn:
                        await self._ask(client)
                    _tell(self._book, wait, listen)
                await asyncio.sleep(min(_TICK_S, left_s))
            return True
        finally:
            self._book.end(wait)

    async def _ask(self, client: "AsyncClient") -> None:
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
