"""Which runs' batches have ended since a look before: for whoever looks now and then.

A scheduler's sensor is called, looks, and is gone; between two looks it keeps a text. The cost
of a look grows with what ended and not with what is open: the inbox names batches, the list is
asked for terminal ones that changed, and what a server's list cannot filter is passed over.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from batchrouter.api.models import TERMINAL_STATES
from batchrouter.errors import ConfigError, NotFoundError
from batchrouter.run.identity import METADATA_PREFIX, RunIdentity

if TYPE_CHECKING:
    from batchrouter.api.client import Client
    from batchrouter.api.models import Batch, BatchPage
    from batchrouter.webhooks.inbox import Inbox

LOOK_BACK = timedelta(hours=72)
"""How far the first look goes back: no SLA tier is longer than 48 hours, a day is for settling."""

_PAGE = 200
"""Whole batches, not summaries: their metadata says whose they are."""
_OVERLAP = timedelta(seconds=5)
_BEHIND_INBOX = 6.0
_MOST_SINGLE_READS = 20
"""More hints than this are cheaper to answer by one list than one by one."""
_FOLLOWED_S = 600.0
_MOST_HINTS = 1_000
_SAYS_NO_END = frozenset({"batch.submitted", "batch.progress"})


@dataclass(frozen=True, slots=True)
class EndedBatch:
    """A batch that is terminal, and the run that bought it.

    Attributes:
        state: ``succeeded``, ``failed``, ``cancelled`` or ``expired``.
        run_id: The run's whole identity, hashed; the same for all of its batches.
    """

    batch_id: str
    state: str
    job: str
    run_key: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has found.

    Attributes:
        ended: Batches of this namespace's runs; one may come again in a later look.
        cursor: For the next look. A text of a few hundred bytes, whatever is open.
        request_count: How often the API was asked.
        is_whole: False when the time ran out, or more ended than one look may tell: look again
            soon.
    """

    ended: tuple[EndedBatch, ...]
    cursor: str
    request_count: int
    is_whole: bool


@dataclass(slots=True)
class _Place:
    """Where the next look begins."""

    since: datetime
    after: str | None = None
    mark: datetime | None = None
    """The server's time when the first page of an unfinished listing was read."""
    polled_at: float = 0.0
    inbox: str | None = None
    hints: dict[str, float] = field(default_factory=dict[str, float])


def look_for_ended(
    client: "Client",
    cursor: str | None = None,
    *,
    inbox: "Inbox | None" = None,
    time_limit_s: float = 30.0,
    most: int = 1_000,
) -> Look:
    """Find batches that have ended since the look that gave a cursor.

    With an inbox the list is asked six times as rarely, and at once when an event tells of an
    end that the API does not show yet. An event is only a hint: the API's state decides.

    Args:
        client: Whose account and namespace are looked at.
        cursor: From the last look; None goes back 72 hours.
        inbox: Where webhook events are.
        time_limit_s: Begin no further request after so many seconds.
        most: Read no further page once so many batches were found.

    Raises:
        ConfigError: The cursor is none of these.
        BatchrouterError: The API or the inbox cannot be read; look again with the old cursor.

    Example:
        >>> look = look_for_ended(client, cursor)                     # doctest: +SKIP
        >>> [each.run_key for each in look.ended]                     # doctest: +SKIP
        ['2026-11-22']
    """
    looking = _Looking(client, _read_cursor(cursor), time.monotonic() + time_limit_s, most)
    if inbox is not None:
        looking.read_inbox(inbox)
    looking.follow_hints()
    looking.poll(has_inbox=inbox is not None)
    return Look(
        ended=tuple(looking.ours()),
        cursor=_write_cursor(looking.place),
        request_count=looking.request_count,
        is_whole=looking.place.after is None,
    )


class _Looking:
    """One look: what was found so far, and how often the API was asked."""

    def __init__(self, client: "Client", place: _Place, end_s: float, most: int) -> None:
        self._client = client
        self.place = place
        self._end_s = end_s
        self._most = most
        self._found: dict[str, Batch] = {}
        self.request_count = 0

    def read_inbox(self, inbox: "Inbox") -> None:
        events, self.place.inbox = inbox.events_since(self.place.inbox)
        now = time.time()
        for event in events:
            if event.type not in _SAYS_NO_END and event.batch_id:
                self.place.hints.setdefault(event.batch_id, now)
        for batch_id in list(self.place.hints)[:-_MOST_HINTS]:
            del self.place.hints[batch_id]

    def follow_hints(self) -> None:
        hints = self.place.hints
        for batch_id, told_at in list(hints.items()):
            if time.time() - told_at > _FOLLOWED_S:
                del hints[batch_id]  # the list will show it, if there is anything to show
        if len(hints) > _MOST_SINGLE_READS:
            self.place.polled_at = 0.0
            return
        for batch_id in list(hints):
            if time.monotonic() > self._end_s:
                return
            self.request_count += 1
            try:
                batch = self._client.retrieve_batch(batch_id)
            except NotFoundError:
                continue
            if batch.is_terminal:
                self._found[batch.id] = batch
                del hints[batch_id]

    def poll(self, *, has_inbox: bool) -> None:
        place = self.place
        interval_s = self._client.settings.poll_interval_s * (_BEHIND_INBOX if has_inbox else 0.0)
        is_due = time.time() - place.polled_at >= interval_s
        if not (is_due or place.after or place.hints):
            return
        while time.monotonic() <= self._end_s and len(self._found) < self._most:
            page = self._read_page()
            place.mark = place.mark or page.server_now
            if not page.has_more or page.next_cursor is None or self._is_past(page):
                self._finish_listing()
                return
            place.after = page.next_cursor

    def _read_page(self) -> "BatchPage":
        self.request_count += 1
        page = self._client.list_batches(
            limit=_PAGE,
            after=self.place.after,
            state=sorted(TERMINAL_STATES),
            updated_after=self.place.since,
        )
        for batch in page.data:
            is_new = batch.updated_at is None or batch.updated_at >= self.place.since
            if batch.is_terminal and is_new:
                self._found[batch.id] = batch
        return page

    def _is_past(self, page: "BatchPage") -> bool:
        """True when a server that ignores the filter has come to batches that ended long ago."""
        oldest = page.data[-1].created_at if page.data else None
        return oldest is not None and oldest < self.place.since - LOOK_BACK

    def _finish_listing(self) -> None:
        place = self.place
        if place.mark is not None:
            place.since = place.mark - _OVERLAP
        place.after = place.mark = None
        place.polled_at = time.time()
        for batch_id in self._found:
            place.hints.pop(batch_id, None)

    def ours(self) -> Iterator[EndedBatch]:
        """The batches that runs of this namespace bought."""
        namespace = self._client.settings.identity_namespace
        for batch in self._found.values():
            told = {
                name: batch.metadata.get(METADATA_PREFIX + name, "")
                for name in ("job", "run_key", "run_id")
            }
            if not all(told.values()):
                continue
            identity = RunIdentity(
                namespace=namespace, job_name=told["job"], run_key=told["run_key"]
            )
            # A run key above 500 characters was cut in the metadata, and is not known again.
            if identity.run_id == told["run_id"]:
                yield EndedBatch(batch_id=batch.id, state=batch.state, **told)


def _read_cursor(cursor: str | None) -> _Place:
    if cursor is None:
        return _Place(since=datetime.now(UTC) - LOOK_BACK)
    try:
        told = cast("dict[str, Any]", json.loads(cursor))
        return _Place(
            since=datetime.fromisoformat(told["since"]),
            after=told.get("after"),
            mark=datetime.fromisoformat(told["mark"]) if told.get("mark") else None,
            polled_at=float(told["polled_at"]),
            inbox=told.get("inbox"),
            hints=_numbers(told.get("hints", {}).items()),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{cursor[:100]!r} is no cursor of a look for ended batches") from None


def _numbers(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    return {name: float(value) for name, value in pairs}


def _write_cursor(place: _Place) -> str:
    return json.dumps(
        {
            "since": place.since.isoformat(),
            "after": place.after,
            "mark": place.mark and place.mark.isoformat(),
            "polled_at": round(place.polled_at, 3),
            "inbox": place.inbox,
            "hints": place.hints,
        },
        separators=(",", ":"),
    )
