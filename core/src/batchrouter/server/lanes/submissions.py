"""What a simulated provider remembers: the submissions that it has accepted.

One append-only file of JSON lines. It survives the router's death, as a real provider's memory
would, and it tells a test what was sent, and how often.
"""

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["SubmissionLog"]


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
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the line of a process that died while it wrote
                self._accepted_at[entry["key"]] = entry["accepted_at"]

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
            with self._path.open("ab") as file:
                file.write(line.encode())
            self._accepted_at[key] = now


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
