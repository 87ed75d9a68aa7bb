"""Which item ids a manifest has had, exactly, in flat memory.

Ids are kept in a window; a full window goes to files by hash, and each file, a small part of
all ids, is compared with itself at the end. Nothing is approximated, and ten million ids need
no more memory than a window.
"""

import heapq
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["SeenIds"]

_WINDOW_IDS = 200_000
_FILES = 64


class SeenIds:
    """The ids of one manifest, with the line that each stood on first.

    Args:
        scratch: A folder for spilled windows; a folder in it is made when the first window
            is full, and deleted at the end of the context.
        window_ids: How many ids are held in memory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, SeenIds(Path(folder)) as seen:
        ...     [seen.add("a", 1), seen.add("b", 2), seen.add("a", 3)]
        [None, None, 1]
    """

    def __init__(self, scratch: Path, *, window_ids: int = _WINDOW_IDS) -> None:
        self._scratch = scratch
        self._window_ids = window_ids
        self._window: dict[str, int] = {}
        self._folder: Path | None = None
        self.late_count = 0

    def add(self, item_id: str, line: int) -> int | None:
        """Note an id; returns the line it stood on before, if that is still in the window.

        Raises:
            OSError: A full window cannot be written.
        """
        first = self._window.setdefault(item_id, line)
        if first != line:
            return first
        if len(self._window) >= self._window_ids:
            self._spill()
        return None

    def late_duplicates(self, limit: int) -> list[tuple[int, int, str]]:
        """Compare the windows with each other.

        Returns:
            `(line, first line, id)` of the first `limit` repeats by line; `late_count` is
            how many there are in all.
        """
        if self._folder is None:
            return []
        self._spill()
        return heapq.nsmallest(limit, self._repeats())

    def _repeats(self) -> Iterator[tuple[int, int, str]]:
        assert self._folder is not None
        for path in sorted(self._folder.iterdir()):
            first_lines: dict[str, int] = {}
            # Ids hold no control characters, so a line end parts them.
            with path.open(encoding="utf-8", newline="\n") as file:
                for entry in file:
                    number, _, item_id = entry.rstrip("\n").partition("\t")
                    line = int(number)
                    first = first_lines.setdefault(item_id, line)
                    if first != line:
                        self.late_count += 1
                        yield line, first, item_id

    def _spill(self) -> None:
        if self._folder is None:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="ids-", dir=self._scratch))
        parts: list[list[str]] = [[] for _ in range(_FILES)]
        for item_id, line in self._window.items():
            parts[hash(item_id) % _FILES].append(f"{line}\t{item_id}\n")
        self._window.clear()
        for number, part in enumerate(parts):
            with (self._folder / f"{number:02d}").open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(part))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._window.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
