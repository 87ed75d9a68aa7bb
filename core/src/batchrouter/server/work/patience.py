"""How a step meets trouble: it waits it out, and gives up only what cannot be cured.

An exception that left a step would be recorded as its outcome: the workflow would end, and the
batch would stay open for ever.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import Enum

from obstore.exceptions import BaseError
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from batchrouter.server.work.lease import LeaseLostError
from batchrouter.server.work.order import OrderError
from batchrouter.server.work.shop import Pulse, Suspended

__all__ = ["Patience"]

_log = logging.getLogger(__name__)

TRIES = 5
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 30.0
_MAX_DOUBLINGS = 16

#: What ends by itself, or when an operator has made room; too many waiters for a connection too,
#: and an object store (`BaseError`) that does not answer, or refuses for now.
#: PostgreSQL tells of a session that it has ended as an internal error.
_PASSING = (
    ConnectionError,
    TimeoutError,
    OperationalError,
    InternalError,
    PoolTimeoutError,
    OSError,
    BaseError,
)


class _Outcome(Enum):
    DONE = "done"
    WAIT = "wait"
    FAILED = "failed"
    HOPELESS = "hopeless"


class Patience:
    """Runs steps until they are done, and knows how many are running.

    Args:
        pulse: Ends waits when the router stops.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._running = 0
        self._changed = threading.Condition()

    def run(self, work: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Run a re-runnable step until it is done.

        A full disk, a locked database or a silent network are waited out for as long as they
        last; what fails five times for another reason is given up by ``give_up``, which makes
        the failure visible. Giving up is tried until it is done, too: nothing else would end
        the batch.

        Raises:
            Suspended: The router is stopping; the step runs again when it starts.
        """
        with self._counted():
            if not self._done(work, TRIES):
                self._done(give_up, None)

    def wait_until_idle(self, at_most_s: float) -> bool:
        """Wait until no step runs; False when some still do."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout=at_most_s)

    def _done(self, work: Callable[[], None], most_tries: int | None) -> bool:
        """Run it until it is done; False when it has failed so often for reasons of its own."""
        tries = failures = 0
        while True:
            outcome = self._try(work)
            if outcome is _Outcome.DONE:
                return True
            tries += 1
            failures += outcome is _Outcome.FAILED
            if outcome is _Outcome.HOPELESS or failures == most_tries:
                return False
            self._wait(min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, _MAX_DOUBLINGS)))

    def _try(self, work: Callable[[], None]) -> "_Outcome":
        self._pulse.check()
        try:
            work()
        except LeaseLostError:
            # Another worker does this step now, and nothing of it may be recorded here.
            raise Suspended from None
        except OrderError as error:
            _log.error("work was given up: %s", error)
            return _Outcome.HOPELESS
        except Exception as error:  # noqa: BLE001 - see the module's text
            # A stopping router takes its tools away: what fails then says nothing.
            self._pulse.check()
            # The class and the place alone: a message might quote an item.
            if isinstance(error, _PASSING) and not isinstance(error, FileNotFoundError):
                _log.warning("work is tried again after %s", _place(error))
                return _Outcome.WAIT
            _log.error("work failed by %s", _place(error))
            return _Outcome.FAILED
        return _Outcome.DONE

    def _wait(self, wait_s: float) -> None:
        ready_at = time.monotonic() + wait_s
        while (left_s := ready_at - time.monotonic()) > 0:
            self._pulse.wait(left_s)

    @contextmanager
    def _counted(self) -> Generator[None]:
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
