"""What a simulated provider remembers: the submissions that it has accepted.

One file of JSON lines. It survives the router's death, as a real provider's memory would, and it
tells a test what was sent, and how often. As a real provider's, it forgets in the end: long after
every batch over a submission has passed its deadline.
"""

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["SubmissionLog"]

KEPT_S = 30 * 86_400
"""No batch is open for longer than two days (contract section 5)."""

_FORGOTTEN_AT_ONCE = 10_000
"""So many old lines are worth writing the file anew."""


class SubmissionLog:
    """The accepted submissions of one provider, shared by its models.

    Args:
        path: The file; its folder is created with the first submission.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SubmissionLog(Path(folder) / "log.jsonl").add("batch_1/0", [0, 1, 2])
        ...     reopened = SubmissionLog(Path(folder) / "log.jsonl")
        >>> reopened.accepted_at("batch_1/0") is None
        False
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._accepted_at: dict[str, float] = {}
        self._forgotten = 0
        for _, entry in self._lines():
            self._accepted_at[entry["key"]] = entry["accepted_at"]
        self._forget(time.time())

    def accepted_at(self, key: str) -> float | None:
        """Tell when a submission was accepted, in Unix seconds; None when it never was."""
        return self._accepted_at.get(key)

    def add(self, key: str, sequence_numbers: Iterable[int]) -> None:
        """Accept a submission of these items."""
        now = time.time()
        entry = {"key": key, "accepted_at": now, "items": _ranges(sequence_numbers)}
        line = json.dumps(entry, separators=(",", ":")) + "\n"
        with self._lock:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                # What a full disk or a death has cut off must not take this line with it.
                is_cut_off = _last_byte(file) not in {b"", b"\n"}
                file.write((f"\n{line}" if is_cut_off else line).encode())
            self._accepted_at[key] = now
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget what is old; the oldest stands first."""
        while self._accepted_at:
            key = next(iter(self._accepted_at))
            if now - self._accepted_at[key] < KEPT_S:
                break
            del self._accepted_at[key]
            self._forgotten += 1
        if self._forgotten >= _FORGOTTEN_AT_ONCE:
            self._rewrite()
            self._forgotten = 0

    def _rewrite(self) -> None:
        draft = self._path.with_suffix(".new")
        with draft.open("wb") as file:
            for line, entry in self._lines():
                if entry["key"] in self._accepted_at:
                    file.write(line + b"\n")
        draft.replace(self._path)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the line of a process that died while it wrote
                yield line.rstrip(b"\n"), entry


def _last_byte(file: BinaryIO) -> bytes:
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Fold ascending numbers into [first, last] pairs.

    Example:
        >>> _ranges([0, 1, 2, 7])
        [[0, 2], [7, 7]]
    """
    folded: list[list[int]] = []
    for number in numbers:
        if folded and folded[-1][1] == number - 1:
            folded[-1][1] = number
        else:
            folded.append([number, number])
    return folded
