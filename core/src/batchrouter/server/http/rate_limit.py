"""How often one key may call: a token bucket a key, refilled evenly over the minute."""

import time

from batchrouter.server.refusals import refusal

__all__ = ["RateLimit"]

_MINUTE_S = 60.0
_MAX_KEYS = 10_000


class RateLimit:
    """Admits so many calls a minute and key; 0 admits all.

    Example:
        >>> limit = RateLimit(requests_per_minute=1)
        >>> limit.admit("key", now_s=0.0)
        >>> limit.admit("key", now_s=60.0)
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._per_minute = requests_per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, key_id: str, *, now_s: float | None = None) -> None:
        """Count a call.

        Raises:
            APIError: `rate_limited`, with the seconds after which one more call fits.
        """
        if not self._per_minute:
            return
        now = time.monotonic() if now_s is None else now_s
        left, since = self._buckets.get(key_id, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / _MINUTE_S)
        if left < 1:
            self._buckets[key_id] = (left, now)
            raise refusal(
                "rate_limited",
                f"over {self._per_minute} calls a minute with this key",
                retry_after_s=max(1.0, (1 - left) * _MINUTE_S / self._per_minute),
            )
        if len(self._buckets) >= _MAX_KEYS:
            self._buckets.clear()
        self._buckets[key_id] = (left - 1, now)
