"""What a chunk's items were asked and answered, item by item, so that a kill repeats little.

The items, a mark before each is sent, its answer behind it. A process that comes after sends only
what has no answer; what was marked and has none may be sent twice, and is counted. A router that
is alone keeps append-only lines in its folder; workers that share a database keep the journal there
(`shared_journal.py`).
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem

__all__ = [
    "FolderJournals",
    "ItemJournal",
    "Journals",
    "decode_answer",
    "decode_item",
    "encode_answer",
    "encode_item",
]


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


_read_item = msgspec.json.Decoder(_Item).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_encode = msgspec.json.Encoder().encode


def encode_item(item: LaneItem) -> bytes:
    """Write an item as one line, without its end."""
    return _encode(
        _Item(
            item.sequence_no,
            item.endpoint,
            msgspec.Raw(item.body),
            item.max_output_tokens,
            item.attempt,
        )
    )


def decode_item(line: bytes) -> LaneItem:
    """Read an item's line."""
    read = _read_item(line)
    return LaneItem(read.n, read.endpoint, bytes(read.body), read.cap, read.attempt)


def encode_answer(item: LaneItem, answer: LaneAnswer) -> bytes:
    """Write an item's answer as one line, without its end."""
    return _encode(
        _Entry(
            item.sequence_no,
            body=msgspec.Raw(answer.body or b"null"),
            i=answer.input_tokens,
            o=answer.output_tokens,
            code=answer.error_code,
            message=answer.error_message,
            retry=answer.is_retryable,
        )
    )


def decode_answer(line: bytes) -> LaneAnswer:
    """Read an answer's line."""
    return _answer_of(_decode_entry(line))


def _answer_of(entry: _Entry) -> LaneAnswer:
    return LaneAnswer(
        None if entry.code else bytes(entry.body),
        entry.i,
        entry.o,
        error_code=entry.code,
        error_message=entry.message,
        is_retryable=entry.retry,
    )


class ItemJournal(Protocol):
    """The journal of one submission."""

    @property
    def exists(self) -> bool:
        """Whether the submission was taken over."""
        ...

    def write_items(self, items: Iterable[LaneItem]) -> None:
        """Store the items, all or none."""
        ...

    def items(self) -> list[LaneItem]:
        """Read the items."""
        ...

    def mark_sent(self, item: LaneItem) -> None:
        """Write down that an item is about to be sent."""
        ...

    def write_answer(self, item: LaneItem, answer: LaneAnswer) -> None:
        """Write an item's answer down."""
        ...

    def answers(self) -> tuple[dict[int, LaneAnswer], set[int]]:
        """Read what was answered, by place, and which items were marked as sent and were not."""
        ...


class Journals(Protocol):
    """Where a lane's journals are."""

    def open(self, key: str) -> ItemJournal:
        """Open a submission's journal, which may not exist yet."""
        ...

    def forget(self, batch_id: str) -> None:
        """Delete the journals of a batch that has ended."""
        ...


class FolderJournals(Journals):
    """The journals of one lane, in a folder that is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, key: str) -> ItemJournal:
        """Open a submission's journal, which may not exist yet."""
        return _FolderJournal(self._folder, key)

    def forget(self, batch_id: str) -> None:
        """Delete the journals of a batch that has ended."""
        for path in self._folder.glob(f"{batch_id}-*"):
            path.unlink(missing_ok=True)


class _FolderJournal(ItemJournal):
    def __init__(self, folder: Path, key: str) -> None:
        name = key.replace("/", "-")
        self._folder = folder
        self._items = folder / f"{name}.items"
        self._entries = folder / f"{name}.answers"
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        return self._items.exists()

    def write_items(self, items: Iterable[LaneItem]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = self._items.with_suffix(".new")
        with staged.open("wb") as file:
            for item in items:
                file.write(encode_item(item) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self._items)

    def items(self) -> list[LaneItem]:
        return [decode_item(line) for line in _lines(self._items)]

    def mark_sent(self, item: LaneItem) -> None:
        self._append(_encode(_Entry(item.sequence_no, sent=True)))

    def write_answer(self, item: LaneItem, answer: LaneAnswer) -> None:
        self._append(encode_answer(item, answer))

    def answers(self) -> tuple[dict[int, LaneAnswer], set[int]]:
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
            answers[entry.n] = _answer_of(entry)
        return answers, open_marks

    def _append(self, line: bytes) -> None:
        # One write to a file opened for appending: whole, or torn at its end by a kill.
        with self._lock, self._entries.open("ab", buffering=0) as file:
            file.write(line + b"\n")


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []
