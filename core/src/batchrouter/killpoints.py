"""Named points at which a test can make this process die as by SIGKILL.

Every side effect of a run and of the router has a point before and after it. In production
`reached` is one look at an environment variable that was read at import.

``BATCHROUTER_KILL_AT=submit.before_send`` kills at the first pass, ``name:3`` at the third;
``BATCHROUTER_KILL_LOG=FILE`` appends the name of every point that is passed. The names stand
in `POINTS`, and a test fails when one of them is never reached.
"""

import os
import signal
from collections import Counter
from pathlib import Path

_KILL_AT, _, _NTH = os.environ.get("BATCHROUTER_KILL_AT", "").partition(":")
_LOG = os.environ.get("BATCHROUTER_KILL_LOG", "")
_ACTIVE = bool(_KILL_AT or _LOG)
_passes: Counter[str] = Counter()


def reached(point: str) -> None:
    """Die here if a test asked for it; otherwise do nothing."""
    if not _ACTIVE:
        return
    if _LOG:
        with Path(_LOG).open("a", encoding="utf-8") as log:
            log.write(f"{point}\n")
    if point == _KILL_AT:
        _passes[point] += 1
        if _passes[point] == int(_NTH or 1):
            os.kill(os.getpid(), signal.SIGKILL)
