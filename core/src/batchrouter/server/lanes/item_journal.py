"""What a chunk's items were asked and answered, item by item, so that a kill repeats little.

Append-only lines in the router's folder: the items, a mark before each is sent, its answer
behind it. A process that comes after sends only what has no answer; what was marked and has
none may be sent twice, and is counted.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem

__all__ = ["ItemJournal"]


class _Item(msgspec.Struct, gc=False):
    n: int
    endpoint: str
    body: msgspec.Raw
    cap: int
    attempt: int


class _Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """A mark (`n` alone, with `sent`), or an answer."""

    n: int
    sent: bool = False
    body: msgspec.Raw = msgspec.Raw(b"null")
    i: int = 0
    o: int = 0
    code: str | None = None
    message: str = ""
    retry: bool = False


_decode_item = msgspec.json.Decoder(_Item).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_encode = msgspec.json.Encoder().encode


class ItemJournal:
    """The journal of one submission.

    Args:
        folder: Of the lane; made when it is needed.
        key: The submission's name.
    """

    def __init__(self, folder: Path, key: str) -> None:
        name = key.replace("/", "-")
        self._folder = folder
        self._items = folder / f"{name}.items"
        self._entries = folder / f"{name}.answers"
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether the submission was taken over."""
        return self._items.exists()

    def write_items(self, items: Iterable[LaneItem]) -> None:
        """Store the items, all or none."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = self._items.with_suffix(".new")
        with staged.open("wb") as file:
            for item in items:
                line = _Item(
                    item.sequence_no,
                    item.endpoint,
                    msgspec.Raw(item.body),
                    item.max_output_tokens,
                    item.attempt,
                )
                file.write(_encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self._items)

    def items(self) -> list[LaneItem]:
        """Read the items."""
        return [
            LaneItem(read.n, read.endpoint, bytes(read.body), read.cap, read.attempt)
            for read in map(_decode_item, _lines(self._items))
        ]

    def mark_sent(self, item: LaneItem) -> None:
        """Write down that an item is about to be sent."""
        self._append(_Entry(item.sequence_no, sent=True))

    def write_answer(self, item: LaneItem, answer: LaneAnswer) -> None:
        """Write an item's answer down."""
        entry = _Entry(
            item.sequence_no,
            body=msgspec.Raw(answer.body or b"null"),
            i=answer.input_tokens,
            o=answer.output_tokens,
            code=answer.error_code,
            message=answer.error_message,
            retry=answer.is_retryable,
        )
        self._append(entry)

    def answers(self) -> tuple[dict[int, LaneAnswer], set[int]]:
        """Read what was answered, by place, and which items were marked as sent and were not."""
        answers: dict[int, LaneAnswer] = {}
        open_marks: set[int] = set()
        for line in _lines(self._entries):
            try:
                entry = _decode_entry(line)
            except msgspec.DecodeError:
                continue  # the line of a process that died while it wrote
            if entry.sent:
                open_marks.add(entry.n)
                continue
            open_marks.discard(entry.n)
            body = bytes(entry.body)
            answers[entry.n] = LaneAnswer(
                None if entry.code else body,
                entry.i,
                entry.o,
                error_code=entry.code,
                error_message=entry.message,
                is_retryable=entry.retry,
            )
        return answers, open_marks

    def delete(self) -> None:
        """Delete both files."""
        for path in (self._entries, self._items):
            path.unlink(missing_ok=True)

    def _append(self, entry: _Entry) -> None:
        # One write to a file opened for appending: whole, or torn at its end by a kill.
        line = _encode(entry) + b"\n"
        with self._lock, self._entries.open("ab", buffering=0) as file:
            file.write(line)


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []
