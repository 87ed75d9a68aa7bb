"""The journal of plain lanes where several workers share a database: any of them can go on.

The items stand in the object store, marks and answers in `lane_items`, a row an item. A mark is
fenced as every write is: a worker whose lease was taken marks nothing more, and so asks nothing
more, and whoever took over reads every mark that there will ever be.
"""

from collections.abc import Iterable

from sqlalchemy import select, update

from batchrouter.server.lanes.item_journal import (
    ItemJournal,
    Journals,
    decode_answer,
    decode_item,
    encode_answer,
    encode_item,
)
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.tables import lane_items

__all__ = ["SharedJournals"]


class SharedJournals(Journals):
    """The journals of all plain lanes; submissions' names are unique over lanes.

    Args:
        database: For marks and answers.
        objects: For items.
    """

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

    def open(self, key: str) -> ItemJournal:
        """Open a submission's journal, which may not exist yet."""
        return _SharedJournal(self._database, self._objects, key)

    def forget(self, batch_id: str) -> None:
        """Delete the journals of a batch that has ended."""
        with self._database.writing() as conn:
            conn.execute(lane_items.delete().where(lane_items.c.batch_id == batch_id))
        for key in list(self._objects.keys(f"lanes/{batch_id}")):
            self._objects.delete(key)


class _SharedJournal(ItemJournal):
    def __init__(self, database: Database, objects: Objects, key: str) -> None:
        self._database = database
        self._objects = objects
        self._key = key
        self._object = f"lanes/{key}/asked.jsonl"

    @property
    def exists(self) -> bool:
        return self._objects.size_bytes(self._object) is not None

    def write_items(self, items: Iterable[LaneItem]) -> None:
        self._objects.put(self._object, [encode_item(item) + b"\n" for item in items])

    def items(self) -> list[LaneItem]:
        stored = b"".join(self._objects.stream(self._object))
        return [decode_item(line) for line in stored.split(b"\n") if line]

    def mark_sent(self, item: LaneItem) -> None:
        with self._database.appending() as conn:
            mine = (lane_items.c.key == self._key, lane_items.c.sequence_no == item.sequence_no)
            if conn.execute(select(lane_items.c.key).where(*mine)).first() is None:
                conn.execute(
                    lane_items.insert().values(
                        key=self._key,
                        sequence_no=item.sequence_no,
                        batch_id=self._key.partition("/")[0],
                    )
                )

    def write_answer(self, item: LaneItem, answer: LaneAnswer) -> None:
        with self._database.appending() as conn:
            conn.execute(
                update(lane_items)
                .where(lane_items.c.key == self._key, lane_items.c.sequence_no == item.sequence_no)
                .values(answer=encode_answer(item, answer))
            )

    def answers(self) -> tuple[dict[int, LaneAnswer], set[int]]:
        wanted = select(lane_items.c.sequence_no, lane_items.c.answer).where(
            lane_items.c.key == self._key
        )
        answers: dict[int, LaneAnswer] = {}
        open_marks: set[int] = set()
        with self._database.reading() as conn:
            for number, answer in conn.execute(wanted):
                if answer is None:
                    open_marks.add(number)
                else:
                    answers[number] = decode_answer(answer)
        return answers, open_marks
