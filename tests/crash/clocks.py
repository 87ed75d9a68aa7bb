"""Wall clocks that a test may set: of one process, or of several at once while they run.

libfaketime stands before the C library of a process that is started with these variables. Only
the wall clock is set: how fast time passes stays as it is, as on a machine whose clock is set or
that has slept.
"""

from pathlib import Path

import libfaketime


def shifted(by: str) -> dict[str, str]:
    """Variables of a process whose clock is so much off, such as ``+1h``."""
    _, preload = libfaketime.get_reload_information()
    return {**preload, "FAKETIME": by}


class Clock:
    """One wall clock of several processes; a test moves it while they run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ahead_s = 0
        self.move(0)

    @property
    def env(self) -> dict[str, str]:
        """Variables of a process that goes by this clock."""
        _, preload = libfaketime.get_reload_information()
        return {**preload, "FAKETIME_TIMESTAMP_FILE": str(self._path)}

    def move(self, seconds_s: float) -> None:
        """Set it forward, or back by a negative number."""
        self._ahead_s += round(seconds_s)
        draft = self._path.with_suffix(".new")
        draft.write_text(f"{self._ahead_s:+d}")
        draft.replace(self._path)
