"""How much a server without a batch API is asked at a time: it adapts, and obeys what it is told.

Concurrency grows by one for each round of successes and is halved by a 429, a 503 or a timeout
(additive increase, multiplicative decrease). `Retry-After` pauses everything. Limits on requests
and tokens a minute are token buckets that hold one minute's worth.
"""

import threading
import time
from collections.abc import Callable

__all__ = ["Throttle"]

_LOOK_S = 0.5
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
_MINUTE_S = 60.0


class _Bucket:
    """So much a minute, and no more than a minute's worth at once."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute or 0)
        self._at = time.monotonic()

    def wait_s(self, amount: float) -> float:
        """How long until so much may be taken; more than a minute's worth counts as that."""
        if self._per_minute is None:
            return 0.0
        now = time.monotonic()
        rate = self._per_minute / _MINUTE_S
        self._left = min(self._per_minute, self._left + (now - self._at) * rate)
        self._at = now
        return max(0.0, (min(amount, self._per_minute) - self._left) / rate)

    def take(self, amount: float) -> None:
        if self._per_minute is not None:
            self._left -= min(amount, self._per_minute)


class Throttle:
    """The limits of one server, shared by all its models and chunks.

    Args:
        concurrency: Requests at a time at most.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.

    Example:
        >>> throttle = Throttle(4)
        >>> throttle.enter(100, lambda: False)
        True
        >>> throttle.leave(is_overloaded=True)
        >>> throttle.limit
        2.0
    """

    def __init__(
        self,
        concurrency: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._most = concurrency
        self.limit = float(concurrency)
        self._in_flight = 0
        self._requests = _Bucket(requests_per_minute)
        self._tokens = _Bucket(tokens_per_minute)
        self._resume_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._changed = threading.Condition()

    def enter(self, tokens: int, is_over: Callable[[], bool]) -> bool:
        """Wait until one more request may be sent.

        Args:
            tokens: What it may cost.
            is_over: Ends the wait.

        Returns:
            False when the wait was ended: nothing may be sent.
        """
        with self._changed:
            while not is_over():
                wait_s = max(
                    self._resume_at - time.monotonic(),
                    self._requests.wait_s(1),
                    self._tokens.wait_s(tokens),
                )
                if wait_s <= 0 and self._in_flight < max(1, int(self.limit)):
                    self._requests.take(1)
                    self._tokens.take(tokens)
                    self._in_flight += 1
                    return True
                self._changed.wait(min(_LOOK_S, wait_s) if wait_s > 0 else _LOOK_S)
        return False

    def leave(self, *, is_overloaded: bool, retry_after_s: float | None = None) -> None:
        """A request has ended.

        Args:
            is_overloaded: It was a 429, a 503 or a timeout.
            retry_after_s: How long the server asks to be left alone.
        """
        with self._changed:
            self._in_flight -= 1
            if is_overloaded:
                self.limit = max(1.0, self.limit / 2)
            else:
                self.limit = min(self._most, self.limit + 1 / self.limit)
                self._pause_s = _FIRST_PAUSE_S
            if retry_after_s is not None:
                self._pause(retry_after_s)
            self._changed.notify_all()

    def back_off(self) -> None:
        """The server cannot be reached: leave it alone, longer each time."""
        with self._changed:
            if time.monotonic() >= self._resume_at:
                self._pause(self._pause_s)
                self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)

    def wake(self) -> None:
        """Have all who wait look whether their wait is over."""
        with self._changed:
            self._changed.notify_all()

    def _pause(self, pause_s: float) -> None:
        self._resume_at = max(self._resume_at, time.monotonic() + min(_MAX_PAUSE_S, pause_s))
