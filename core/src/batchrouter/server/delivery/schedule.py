"""When an event is tried again: 8 retries over 24 hours, each wait longer than the last."""

import random
from dataclasses import dataclass

__all__ = ["DeliverySchedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySchedule:
    """Waits between the tries of one event.

    Attributes:
        first_retry_s: Mean wait before the first retry. It is longer than ``timeout_s``, so that
            a try has always ended before the next one of the same event is due.
        growth: Each mean wait is this many times the one before; 15 s and 3.26 spread eight
            retries over 24 hours.
        retries: Tries after the first one.
        jitter: Share by which a wait is made shorter by chance, so that the retries of many
            events do not arrive together. Never longer: a receiver takes a bare signature for
            25 hours (contract section 7).
        timeout_s: Seconds that one try may take, name resolution included.

    Example:
        >>> mean_s = [DeliverySchedule(jitter=0).wait_s(attempt) for attempt in range(1, 9)]
        >>> round(mean_s[0]), round(sum(mean_s) / 3600)
        (15, 24)
    """

    first_retry_s: float = 15.0
    growth: float = 3.26
    retries: int = 8
    jitter: float = 0.2
    timeout_s: float = 10.0

    @property
    def attempts(self) -> int:
        """Tries in all."""
        return 1 + self.retries

    def wait_s(self, attempts_made: int) -> float:
        """Seconds from try number ``attempts_made`` (from 1) to the next one."""
        mean_s = self.first_retry_s * self.growth ** (attempts_made - 1)
        return mean_s * random.uniform(1 - self.jitter, 1)  # noqa: S311 - spreads load, hides nothing
