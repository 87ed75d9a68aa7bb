"""A real HTTP proxy on loopback that breaks what networks break, on the requests that a test names.

Each rule is for one method and path, starts at the nth matching request and holds for so many.
Requests that no rule claims pass unchanged; all are counted.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, Self
from urllib.parse import urlsplit

from batchrouter.testing.forwarding import Listener, Upstream

Fault = Literal["drop_reply", "delay", "truncate", "reset", "duplicate", "trickle", "answer"]


@dataclass(slots=True)
class Rule:
    """What happens to which requests.

    Attributes:
        path: Without query; `*` stands for anything, slashes too.
        nth: The first matching request that is hit, from 1; counted from when the rule is made.
        times: How many are hit.
    """

    fault: Fault
    method: str
    path: str
    nth: int = 1
    times: int = 1
    seconds_s: float = 0.0
    after_bytes: int = 0
    status: int = 503
    retry_after_s: float | None = None
    body: bytes = b""
    matched: int = 0

    def claims(self, method: str, path: str) -> bool:
        """Count a matching request, and say whether it is one of those to be hit."""
        if self.method not in {"*", method} or not fnmatchcase(path, self.path):
            return False
        self.matched += 1
        return self.nth <= self.matched < self.nth + self.times


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came by, and the fault it met, None when it passed."""

    method: str
    path: str
    fault: Fault | None


@dataclass(slots=True)
class _Ledger:
    rules: list[Rule] = field(default_factory=list[Rule])
    seen: list[Seen] = field(default_factory=list[Seen])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, path: str) -> Rule | None:
        with self.lock:
            # Every rule counts the request, so that "the second POST" means the same to all.
            hit = [rule for rule in self.rules if rule.claims(method, path)]
            rule = hit[0] if hit else None
            self.seen.append(Seen(method, path, rule.fault if rule else None))
            return rule


class FaultProxy:
    """A proxy between a client and a router, with rules that break things.

    Args:
        upstream: The router's base URL; may be set later (`proxy.upstream = …`), so that a
            router can be told the proxy's address as its public one.

    Attributes:
        base_url: What the client talks to; the same after `go_away`.

    Example:
        >>> with running_router() as router, FaultProxy(router.base_url) as proxy:  # doctest: +SKIP
        ...     proxy.drop_reply("POST", "/v1/batches", times=3)
        ...     client = Client(router.settings(base_url=proxy.base_url))
    """

    def __init__(self, upstream: str = "") -> None:
        self.upstream = upstream
        self._ledger = _Ledger()
        self._listener = Listener(self._ledger.note, self._upstream)
        self._returning: threading.Timer | None = None
        self.base_url = f"http://127.0.0.1:{self._listener.port}"

    def __enter__(self) -> Self:
        self._listener.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._returning is not None:
            self._returning.cancel()
        self._listener.close()

    def drop_reply(self, method: str, path: str, *, nth: int = 1, times: int = 1) -> Rule:
        """Let the request through, wait for the whole reply, and hang up without sending it."""
        return self._add(Rule("drop_reply", method, path, nth, times))

    def delay(
        self, method: str, path: str, *, seconds_s: float, nth: int = 1, times: int = 1
    ) -> Rule:
        """Hold the reply back for so many seconds after the router gave it."""
        return self._add(Rule("delay", method, path, nth, times, seconds_s=seconds_s))

    def truncate(
        self, method: str, path: str, *, after_bytes: int, nth: int = 1, times: int = 1
    ) -> Rule:
        """Send the head and so many bytes of the reply's body, then hang up."""
        return self._add(Rule("truncate", method, path, nth, times, after_bytes=after_bytes))

    def reset(
        self, method: str, path: str, *, after_bytes: int = 0, nth: int = 1, times: int = 1
    ) -> Rule:
        """Reset the connection once so many bytes of the request's body were passed on.

        With 0 the router hears nothing at all; else it sees a request that is cut short.
        """
        return self._add(Rule("reset", method, path, nth, times, after_bytes=after_bytes))

    def duplicate(self, method: str, path: str, *, nth: int = 1, times: int = 1) -> Rule:
        """Send the request to the router twice, one after the other; the second reply is given."""
        return self._add(Rule("duplicate", method, path, nth, times))

    def trickle(
        self, method: str, path: str, *, seconds_s: float, nth: int = 1, times: int = 1
    ) -> Rule:
        """Send the reply's body byte by byte, with so many seconds before each."""
        return self._add(Rule("trickle", method, path, nth, times, seconds_s=seconds_s))

    def answer(
        self,
        method: str,
        path: str,
        *,
        status: int,
        retry_after_s: float | None = None,
        body: bytes = b"",
        nth: int = 1,
        times: int = 1,
    ) -> Rule:
        """Answer for the router, which never hears of the request."""
        return self._add(
            Rule(
                "answer",
                method,
                path,
                nth,
                times,
                status=status,
                retry_after_s=retry_after_s,
                body=body,
            )
        )

    def go_away(self, seconds_s: float | None = None) -> None:
        """Close the port and cut every connection, for a while or until `come_back`."""
        self._listener.close()
        if seconds_s is not None:
            self._returning = threading.Timer(seconds_s, self.come_back)
            self._returning.daemon = True
            self._returning.start()

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._listener.open()

    @property
    def seen(self) -> Sequence[Seen]:
        """Every request so far, in the order in which it came."""
        with self._ledger.lock:
            return tuple(self._ledger.seen)

    def count(self, method: str, path: str) -> int:
        """How many requests of this method and path (`*` is anything) came by, hit or not."""
        return sum(
            method in {"*", each.method} and fnmatchcase(each.path, path) for each in self.seen
        )

    def forget_rules(self) -> None:
        """Let everything pass from here on; the counts stay."""
        with self._ledger.lock:
            self._ledger.rules.clear()

    def wait_for(self, method: str, path: str, *, count: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until so many such requests came by.

        Raises:
            TimeoutError: They did not.
        """
        give_up_at = time.monotonic() + timeout_s
        while self.count(method, path) < count:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{method} {path} came {self.count(method, path)} times")
            time.sleep(0.01)

    def _add(self, rule: Rule) -> Rule:
        with self._ledger.lock:
            self._ledger.rules.append(rule)
        return rule

    def _upstream(self) -> Upstream:
        parts = urlsplit(self.upstream)
        return Upstream(parts.hostname or "127.0.0.1", parts.port or 80)
