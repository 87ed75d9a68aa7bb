"""An inbox in a folder, for workers that share nothing but a file system or a bucket.

``events/<microseconds received>-<hash of id>.json`` holds the events in the order in which
they came, so that a reader needs one listing per look. ``known/<day created>/<hash of id>``
marks ids that have come; the day is the event's own, so it is found again without a search.

Clocks of several receivers differ, and a bucket's listing may show a file late: a cursor
therefore looks back over a minute, and carries what it has seen of that minute.
"""

import hashlib
import json
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import fsspec

from batchrouter.api.settings import masked_url
from batchrouter.errors import ConfigError, StorageError
from batchrouter.killpoints import reached
from batchrouter.webhooks.inbox import KEPT, REMEMBERED, check_retention
from batchrouter.webhooks.signing import Event

_OVERLAP_US = 60 * 1_000_000
_NAME = re.compile(r"(\d{16})-([0-9a-f]{32})\.json")
_CURSOR = re.compile(r"(\d{1,16})((?:-[0-9a-f]{32})*)")


class FolderInbox:
    """See `batchrouter.webhooks.inbox.Inbox`."""

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._shown = masked_url(url)
        try:
            fs, root = fsspec.core.url_to_fs(url, **storage_options)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"inbox_url {self._shown}: no fsspec file system for it ({error})"
            ) from None
        self._fs: fsspec.AbstractFileSystem = fs
        self._events = f"{root.rstrip('/')}/events"
        self._known = f"{root.rstrip('/')}/known"
        with self._told("opened"):
            self._fs.makedirs(self._events, exist_ok=True)
            self._fs.makedirs(self._known, exist_ok=True)

    def put(self, event: Event) -> bool:
        """See `Inbox.put`."""
        token = hashlib.sha256(event.id.encode()).hexdigest()[:32]
        day = event.created_at.astimezone(UTC).strftime("%Y%m%d")
        mark = f"{self._known}/{day}/{token}"
        reached("webhooks.before_put")
        with self._told("written"):
            if self._fs.exists(mark):
                return False
            # The event first: who dies in between has not answered, and the event comes again.
            name = f"{time.time_ns() // 1000:016d}-{token}.json"
            self._fs.pipe_file(f"{self._events}/{name}", json.dumps(event.to_dict()).encode())
            self._fs.makedirs(f"{self._known}/{day}", exist_ok=True)
            self._fs.pipe_file(mark, b"")
        reached("webhooks.after_put")
        return True

    def events_since(self, cursor: str | None) -> tuple[list[Event], str]:
        """See `Inbox.events_since`."""
        last_us, seen = _read_cursor(cursor)
        found: dict[str, int] = {}
        names: dict[str, str] = {}
        with self._told("read"):
            for received_us, token, name in self._list():
                if received_us > last_us - _OVERLAP_US and token not in found:
                    found[token] = received_us
                    names[token] = name
            fresh = [token for token in found if token not in seen]
            bodies = self._read([f"{self._events}/{names[token]}" for token in fresh])
        events: list[Event] = []
        for token, body in zip(fresh, bodies, strict=True):
            try:
                events.append(Event.from_dict(json.loads(body)))
            except (ValueError, KeyError, TypeError):
                del found[token]  # still being written: it is looked at again for a minute
        newest_us = max([last_us, *found.values()])
        tokens = [token for token, at in found.items() if at > newest_us - _OVERLAP_US]
        return events, "-".join([str(newest_us), *tokens])

    def prune(self, older_than: timedelta = KEPT) -> int:
        """See `Inbox.prune`."""
        check_retention(older_than)
        before = datetime.now(UTC) - older_than
        before_us = int(before.timestamp() * 1_000_000)
        # A mark's day is that of the event, which may be as old as deliveries may be.
        first_day = (before - REMEMBERED).strftime("%Y%m%d")
        with self._told("pruned"):
            old = [name for at, _, name in self._list() if at < before_us]
            for name in old:
                self._remove(f"{self._events}/{name}")
            for path in self._fs.ls(self._known, detail=False):
                if str(path).rstrip("/").rpartition("/")[2] < first_day:
                    self._remove(str(path), recursive=True)
        return len(old)

    def close(self) -> None:
        """See `Inbox.close`."""

    def __repr__(self) -> str:
        return f"FolderInbox({self._shown})"

    def _list(self) -> list[tuple[int, str, str]]:
        """Return (microseconds received, token, name) of every event, in that order."""
        self._fs.invalidate_cache()
        listed: list[tuple[int, str, str]] = []
        for path in self._fs.ls(self._events, detail=False):
            name = str(path).rpartition("/")[2]
            if told := _NAME.fullmatch(name):
                listed.append((int(told[1]), told[2], name))
        return sorted(listed)

    def _read(self, paths: list[str]) -> list[bytes]:
        """Read files, at once where the file system can; what is gone reads as empty."""
        if not paths:
            return []
        bodies = cast("dict[str, Any]", self._fs.cat(paths, on_error="return"))
        read: list[bytes] = []
        for path in paths:
            body = bodies.get(path, b"")
            if isinstance(body, Exception) and not isinstance(body, FileNotFoundError):
                raise body
            read.append(body if isinstance(body, bytes) else b"")
        return read

    def _remove(self, path: str, *, recursive: bool = False) -> None:
        try:
            self._fs.rm(path, recursive=recursive)
        except FileNotFoundError:
            return  # another process prunes too

    @contextmanager
    def _told(self, done: str) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"the inbox {self._shown} cannot be {done}: {error}") from error


def _read_cursor(cursor: str | None) -> tuple[int, frozenset[str]]:
    if cursor is None:
        return 0, frozenset()
    told = _CURSOR.fullmatch(cursor)
    if told is None:
        raise ConfigError(f"{cursor!r} is no cursor of a folder inbox")
    return int(told[1]), frozenset(told[2].split("-")[1:])
