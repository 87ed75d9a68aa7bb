"""The merge: for each row that was sent, its line of the artifact.

The artifact comes in manifest order (contract section 6), so the next line is the next row's,
and one comparison of item ids says so. The item id alone decides: it is a hash of the row's
key that we made, while `sequence_no` is only a place. At the first line that is not the next
row's, the rest of the part goes by the index on disk; the rows before it stand, because the
first readable line of an item counts on either path.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import IO, Self, cast

import fsspec

from batchrouter.errors import LandingError
from batchrouter.landing.disorder import find_by_index
from batchrouter.landing.envelope import Envelope, UnreadableLineError, read_line
from batchrouter.landing.lines import CHUNK_BYTES, read_blocks, split_lines
from batchrouter.landing.regular import Line
from batchrouter.landing.rejects import Rejects
from batchrouter.landing.snapshot import Snapshot


class OutOfOrderError(Exception):
    """A line is not the next row's."""


class Answers:
    """The lines of one part's artifact, asked for row by row; a context manager.

    Args:
        fs: The run's filesystem.
        artifact_path: The artifact; None when nothing came.
        snapshot: The part's rows, read again only when the artifact is out of order.
        rejects: Takes the lines that land nowhere.
        from_byte: Where the first line to look at stands.
        to_byte: Where the last one ends; None for the end of the file.
        rows_done: How many rows that were sent have the lines before it.
        read: Reads a line that comes in its turn.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        artifact_path: str | None,
        snapshot: Snapshot,
        rejects: Rejects,
        *,
        from_byte: int = 0,
        to_byte: int | None = None,
        rows_done: int = 0,
        read: Callable[[bytes], Line] = read_line,
    ) -> None:
        self._fs = fs
        self._artifact_path = artifact_path
        self._snapshot = snapshot
        self._rejects = rejects
        self._rows_done = rows_done
        self._read = read
        self._by_index: Iterator[Envelope | None] | None = None
        self._stack = ExitStack()
        self._blocks: Iterator[tuple[int, bytes]] = iter(())
        self._block: list[bytes] = []
        self._block_at_byte = 0
        self._taken = 0
        if artifact_path is not None:
            file = cast("IO[bytes]", fs.open(artifact_path, "rb", block_size=CHUNK_BYTES))
            self._blocks = read_blocks(
                self._stack.enter_context(file), from_byte=from_byte, to_byte=to_byte
            )
        self._lines = self._one_by_one()

    def next_run(self, item_ids: list[str]) -> list[Line | None]:
        """Give the lines of the next rows that were sent: of one at least, of all at most.

        Args:
            item_ids: The ids of the next rows, at least one; None stands for a row without a line.
        """
        if self._by_index is not None:
            return list(islice(self._by_index, len(item_ids)))
        if self._taken == len(self._block) and not self._load():
            return [None] * len(item_ids)
        lines = self._block[self._taken : self._taken + len(item_ids)]
        try:
            found = [*map(self._read, lines)]
        except UnreadableLineError:
            return [self._next_for(item_ids[0])]
        if [each.customer_item_id for each in found] != item_ids[: len(found)]:
            return [self._next_for(item_ids[0])]
        self._taken += len(found)
        self._rows_done += len(found)
        return cast("list[Line | None]", found)

    def _next_for(self, item_id: str) -> Envelope | None:
        """Look at the next line by itself; it may be blank, or not the row's."""
        found = next(self._lines, None)
        if found is None:
            return None
        at_byte, raw = found
        try:
            line = read_line(raw)
        except UnreadableLineError:
            pass  # the index reads it again, and quarantines it
        else:
            if line.customer_item_id == item_id:
                self._rows_done += 1
                return line
        self._by_index = self._index(at_byte)
        return next(self._by_index)

    def _load(self) -> bool:
        """Take the next block; False at the end."""
        found = next(self._blocks, None)
        if found is None:
            return False
        self._block_at_byte, block = found
        self._block, self._taken = block.split(b"\n"), 0
        return True

    def _one_by_one(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that were not taken yet, without blank ones, and mark them taken."""
        while self._taken < len(self._block) or self._load():
            line = self._block[self._taken]
            at_byte = self._block_at_byte + sum(map(len, self._block[: self._taken])) + self._taken
            self._taken += 1
            yield from split_lines(line, at_byte)

    def finish(self) -> None:
        """Sort out the lines that are left when every row was asked for."""
        if self._by_index is None:
            found = next(self._lines, None)
            if found is None:
                return
            self._by_index = self._index(found[0])
        if any(True for _ in self._by_index):
            raise LandingError("landing asked for fewer rows than were sent; nothing was committed")

    def _index(self, from_byte: int) -> Iterator[Envelope | None]:
        assert self._artifact_path is not None
        found = find_by_index(
            self._fs,
            self._artifact_path,
            from_byte=from_byte,
            item_ids=self._snapshot.sent_item_ids(),
            rows_done=self._rows_done,
            rejects=self._rejects,
        )
        self._stack.callback(found.close)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class InOrderAnswers(Answers):
    """The lines of some rows that stand together, or `OutOfOrderError`."""

    def next_run(self, item_ids: list[str]) -> list[Line | None]:
        """Give the lines of the next rows.

        Raises:
            OutOfOrderError: A row has no line, or another one stands in its place.
        """
        found = super().next_run(item_ids)
        if None in found:
            raise OutOfOrderError
        return found

    def _index(self, from_byte: int) -> Iterator[Envelope | None]:
        raise OutOfOrderError(from_byte)
