"""How a script waits: on the process's watcher of this account, with a bound."""

import asyncio
import hashlib
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from batchrouter.api.settings import Settings
from batchrouter.errors import (
    ArtifactError,
    BatchrouterError,
    ConfigError,
    RateLimitedError,
    ServerError,
    TransportError,
)
from batchrouter.run.watch import AsyncWatcher, Watcher
from batchrouter.run.watch_book import WaitMode

if TYPE_CHECKING:
    from batchrouter.webhooks.inbox import Inbox

_log = logging.getLogger(__name__)

PASSING = (TransportError, ServerError, RateLimitedError, ArtifactError)
"""Failures that a script waits out once something is bought."""

_PATIENCE_S = 900.0
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0

LONGEST = timedelta(hours=72)
"""No SLA tier of the contract is longer than 48 hours; a day is left for settling."""

_watchers: dict[str, Watcher] = {}
_inboxes: "dict[str, Inbox]" = {}
_async_watchers: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncWatcher]]" = (
    WeakKeyDictionary()
)
_registry = threading.Lock()


def check_mode(settings: Settings, mode: WaitMode) -> None:
    """Refuse to wait for webhooks that cannot come.

    Raises:
        ConfigError: `mode` is ``webhook`` and a setting that it needs is missing.
    """
    if mode not in {"both", "webhook", "poll"}:
        raise ConfigError(f"wait: {mode!r} is unknown; use 'both', 'webhook' or 'poll'")
    if mode != "webhook":
        return
    needed = ("inbox_url", "webhook_url", "webhook_secret")
    missing = [name for name in needed if getattr(settings, name) is None]
    if missing:
        names = ", ".join(f"BATCHROUTER_{name.upper()}" for name in missing)
        raise ConfigError(
            f"wait='webhook' needs {names}: the URL at which a receiver listens, its secret, and "
            "the inbox that it writes (start one with `batchrouter webhooks serve`)"
        )


def watcher_for(settings: Settings) -> Watcher:
    """The process's one watcher for this account and inbox."""
    with _registry:
        account = _account(settings)
        if account not in _watchers:
            _watchers[account] = Watcher(
                poll_interval_s=settings.poll_interval_s,
                inbox=_inbox(settings),
                inbox_interval_s=_inbox_interval_s(settings),
            )
        return _watchers[account]


def async_watcher_for(settings: Settings) -> AsyncWatcher:
    """The running loop's one watcher for this account and inbox."""
    with _registry:
        of_loop = _async_watchers.setdefault(asyncio.get_running_loop(), {})
        account = _account(settings)
        if account not in of_loop:
            of_loop[account] = AsyncWatcher(
                poll_interval_s=settings.poll_interval_s,
                inbox=_inbox(settings),
                inbox_interval_s=_inbox_interval_s(settings),
            )
        return of_loop[account]


def until(timeout_s: float | None) -> datetime:
    """The wall-clock end of a wait."""
    bound = LONGEST if timeout_s is None else timedelta(seconds=timeout_s)
    return datetime.now(UTC) + bound


def _inbox(settings: Settings) -> "Inbox | None":
    if settings.inbox_url is None:
        return None
    from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy

    # One for all loops of this process: each `asyncio.run` would leave its connections behind.
    account = _account(settings)
    if account not in _inboxes:
        _inboxes[account] = open_inbox(settings.inbox_url, **settings.storage_options)
    return _inboxes[account]


def _inbox_interval_s(settings: Settings) -> float:
    # A query costs next to nothing; each look into a bucket is a listing that is paid for.
    from batchrouter.webhooks.folder_inbox import FolderInbox  # noqa: PLC0415 - loads fsspec

    return settings.poll_interval_s if isinstance(_inbox(settings), FolderInbox) else 0.0


def _account(settings: Settings) -> str:
    # Hashed, so that no key lies about in a registry that a debugger or a repr shows.
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    whole = "\0".join((settings.base_url, key, settings.inbox_url or ""))
    return hashlib.sha256(f"{whole}\0{settings.poll_interval_s}".encode()).hexdigest()


class Pauses:
    """How long to pause after failures that pass: longer each time, and not for ever."""

    def __init__(self, end_at: datetime) -> None:
        self._end_at = end_at
        self._since_s = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S

    def next_s(self, error: BatchrouterError, *, bought: bool) -> float:
        """Give the next pause, or raise the error: at once while nothing is at stake."""
        left_s = seconds_to(self._end_at)
        if not bought or left_s <= 0 or time.monotonic() - self._since_s > _PATIENCE_S:
            raise error
        pause_s = min(self._pause_s, left_s)
        _log.warning("going on in %.0f s: %s", pause_s, error)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return pause_s


def seconds_to(moment: datetime) -> float:
    """Seconds until a wall-clock time, never negative."""
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
