"""Named points at which a test can make this process die as by SIGKILL, or stop as by SIGSTOP.

Every side effect of a run and of the router has a point before and after it. In production
`reached` is one look at an environment variable that was read at import.

``BATCHROUTER_KILL_AT=submit.before_send`` kills at the first pass, ``name:3`` at the third;
``BATCHROUTER_STOP_AT`` stops the whole process in the same way, until it gets a SIGCONT: the
worker that everyone took for dead. ``BATCHROUTER_KILL_LOG=FILE`` appends the name of every point
that is passed. The names stand in `batchrouter.testing.KILL_POINTS`, and a test fails when one of
them is never reached.
"""

import os
import signal
from collections import Counter
from pathlib import Path

_SIGNALS = {"BATCHROUTER_KILL_AT": signal.SIGKILL, "BATCHROUTER_STOP_AT": signal.SIGSTOP}
_asked = {
    (point, int(nth or 1)): number
    for variable, number in _SIGNALS.items()
    for point, _, nth in [os.environ.get(variable, "").partition(":")]
    if point
}
_LOG = os.environ.get("BATCHROUTER_KILL_LOG", "")
_ACTIVE = bool(_asked or _LOG)
_passes: Counter[str] = Counter()


def reached(point: str) -> None:
    """Die or stop here if a test asked for it; otherwise do nothing."""
    if not _ACTIVE:
        return
    if _LOG:
        with Path(_LOG).open("a", encoding="utf-8") as log:
            log.write(f"{point}\n")
    _passes[point] += 1
    number = _asked.get((point, _passes[point]))
    if number is not None:
        # To this thread: of a signal to the process another one may hear first, and this goes on.
        signal.raise_signal(number)
