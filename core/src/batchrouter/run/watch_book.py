"""What a watcher knows and asks next; it does nothing itself, and has no clock of its own.

The list is paged by `updated_after`, so that the cost grows with what changes and not with who
waits; what it did not show for long is read by its id; and an event of the inbox is a hint,
followed until the API's own state agrees.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from batchrouter.api.models import Batch, BatchPage
    from batchrouter.webhooks.signing import Event

WaitMode = Literal["both", "webhook", "poll"]

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
_FAILED_S = 5.0
_SAYS_NO_END = frozenset({"batch.submitted", "batch.progress"})
_FIRST_HINT_S = 1.0
_MOST_HINTS = 10_000


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


@dataclass(slots=True, eq=False)
class Wait:
    """Someone waits until all of its batches are terminal."""

    batch_ids: frozenset[str]
    mode: WaitMode
    since_s: float


@dataclass(slots=True)
class _Hint:
    """An event has told of a batch's end; what it says is believed only once the API agrees."""

    look_at_s: float
    pause_s: float = _FIRST_HINT_S


@dataclass(slots=True)
class WatchBook:
    """Who waits for what, what is known, and what to ask next; it does nothing itself.

    Attributes:
        poll_interval_s: The longest time between two polls where there is no inbox.
        has_inbox: True when events can wake the waits.
        inbox_interval_s: The shortest time between two looks into the inbox.
    """

    poll_interval_s: float
    has_inbox: bool
    inbox_interval_s: float = 0.0
    waits: list[Wait] = field(default_factory=list[Wait])
    known: dict[str, "Batch"] = field(default_factory=dict[str, "Batch"])
    _seen_s: dict[str, float] = field(default_factory=dict[str, float])
    _cursor: datetime | None = None
    _inbox_cursor: str | None = None
    _next_poll_s: float = 0.0
    _next_inbox_s: float = 0.0
    _hints: dict[str, _Hint] = field(default_factory=dict[str, _Hint])
    """By batch; kept when nobody waits yet, since an event may be faster than its wait."""

    def begin(self, batch_ids: Sequence[str], mode: WaitMode, now_s: float) -> Wait:
        """Register a wait; its batches are taken to be open until something says otherwise."""
        wait = Wait(frozenset(batch_ids), mode, now_s)
        self.waits.append(wait)
        for batch_id in wait.batch_ids - self._seen_s.keys():
            self._seen_s[batch_id] = now_s
            # Its end may have come before its wait, and be older than the lists' cursor.
            self._cursor = None
            if batch_id in self._hints:
                self._hints[batch_id] = _Hint(now_s)
        self._next_poll_s = min(self._next_poll_s, now_s + _SHORTEST_S)
        return wait

    def end(self, wait: Wait) -> None:
        """Forget a wait, and what only it wanted to know."""
        self.waits.remove(wait)
        for batch_id in wait.batch_ids - self._wanted():
            self.known.pop(batch_id, None)
            self._seen_s.pop(batch_id, None)

    def is_over(self, wait: Wait) -> bool:
        """True when every batch of the wait is known to be terminal."""
        return all(each in self.known and self.known[each].is_terminal for each in wait.batch_ids)

    def cycle(self, now_s: float) -> Cycle:
        """Ask what is due now: the inbox always, the API when its turn has come."""
        if self.has_inbox and now_s >= self._next_inbox_s:
            yield from self._read_inbox(now_s)
            self._next_inbox_s = now_s + self.inbox_interval_s
        yield from self._follow_hints(now_s)
        if self._polls() and now_s >= self._next_poll_s:
            yield from self._poll(now_s)
            self._next_poll_s = now_s + self._interval_s(now_s)

    def after_failure(self, now_s: float) -> None:
        """Leave the API and the inbox alone for a moment."""
        self._next_poll_s = max(self._next_poll_s, now_s + _FAILED_S)
        self._next_inbox_s = max(self._next_inbox_s, now_s + _FAILED_S)

    def _wanted(self) -> set[str]:
        wanted: set[str] = set()
        for wait in tuple(self.waits):  # other threads begin and end theirs meanwhile
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
        for event in events:
            if event.type not in _SAYS_NO_END:
                self._hints[event.batch_id] = _Hint(now_s)
        excess = len(self._hints) - _MOST_HINTS
        if excess > 0:
            wanted = self._wanted()
            for batch_id in [each for each in self._hints if each not in wanted][:excess]:
                del self._hints[batch_id]

    def _follow_hints(self, now_s: float) -> Cycle:
        # Again and again, each time later, until the API agrees: a replica may lag behind its
        # own events, and a lost look must not leave a wait without polling deaf for ever.
        for batch_id in sorted(self._open() & self._hints.keys()):
            hint = self._hints[batch_id]
            if hint.look_at_s <= now_s:
                hint.look_at_s = now_s + hint.pause_s
                hint.pause_s = min(hint.pause_s * 2, _LOOK_AGAIN_S)
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
                self._learn(batch.id, batch, now_s)

    def _retrieve(self, batch_id: str, now_s: float) -> Cycle:
        batch: Batch | None = yield Retrieve(batch_id)
        self._learn(batch_id, batch, now_s)

    def _learn(self, batch_id: str, batch: "Batch | None", now_s: float) -> None:
        if batch_id not in self._seen_s:
            return  # its last wait has ended meanwhile
        self._seen_s[batch_id] = now_s
        if batch is not None:
            self.known[batch_id] = batch
