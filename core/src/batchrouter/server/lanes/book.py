"""What has been handed to providers, written down before each step that could cost money.

A submission passes these states, each change a conditional update:

    prepared   its items are stored; nothing was sent, or what was sent can never be bought
    intended   a create may be on its way: it bears the intent's id
    unsettled  a create was sent and its reply was lost: the provider is asked what it has
    held       that could not be found out: an operator decides (`batchrouter lanes reconcile`)
    accepted   the provider has it, and its batch is known
    collected  the provider's results are stored
    refused    the provider took nothing; `trouble` says why
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, Row, func, select, update

from batchrouter.server.lanes.lane import LaneAnswer
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import lane_submissions

__all__ = [
    "AT_PROVIDER",
    "Book",
    "Room",
    "State",
    "Submission",
    "decide_held",
    "open_submissions",
    "trouble_json",
]

State = Literal["prepared", "intended", "unsettled", "held", "accepted", "collected", "refused"]

#: States in which a provider has the submission, or may have it.
AT_PROVIDER: tuple[State, ...] = ("intended", "unsettled", "held", "accepted")


@dataclass(frozen=True, slots=True)
class Submission:
    """One row of the book; times are microseconds since 1970 UTC.

    Attributes:
        key: The engine's name of it.
        intent: The id that its create bears; None before the first.
        intended_at: When that create was decided on, by the provider's clock.
        input_file: The provider's id of the uploaded file, where there are files.
        provider_batch: The provider's id of the batch, once it is known.
        creates: How many creates were sent.
        trouble: What was refused, or why it is held.
        next_at: Nothing is to be done before.
    """

    key: str
    batch_id: str
    provider: str
    model: str
    state: State
    item_count: int
    input_tokens: int
    intent: str | None
    intended_at: int | None
    input_file: str | None
    provider_batch: str | None
    creates: int
    trouble: LaneAnswer | None
    next_at: int
    is_cancelled: bool
    gave_way: bool
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Room:
    """How much a provider lets be open at a time.

    Attributes:
        enqueued_tokens: The most input tokens that it queues of a model, or None; what is larger
            than that alone is sent when nothing else is queued.
        alone: Only one create of the account may be open at a time.
    """

    enqueued_tokens: int | None
    alone: bool


class Book:
    """The submissions of one lane's account at its provider.

    Args:
        database: The router's tables.
        provider: The lane's name.
        model: The model at the provider.

    Example:
        >>> book = Book(database, "openai", "gpt-4o-mini")  # doctest: +SKIP
        >>> book.find("batch_1/0/0/1") is None              # doctest: +SKIP
        True
    """

    def __init__(self, database: Database, provider: str, model: str) -> None:
        self._database = database
        self._provider = provider
        self._model = model

    def find(self, key: str) -> Submission | None:
        """Read a submission; None when there is none of this name."""
        wanted = select(lane_submissions).where(lane_submissions.c.key == key)
        with self._database.reading() as conn:
            row = conn.execute(wanted).first()
        return None if row is None else _submission_from(row)

    def add(self, key: str, *, item_count: int, input_tokens: int) -> None:
        """Write down that a submission is prepared."""
        now = now_us()
        with self._database.writing() as conn:
            conn.execute(
                lane_submissions.insert().values(
                    key=key,
                    batch_id=key.partition("/")[0],
                    provider=self._provider,
                    model=self._model,
                    state="prepared",
                    item_count=item_count,
                    input_tokens=input_tokens,
                    created_at=now,
                    updated_at=now,
                )
            )

    def move(self, key: str, origin: Sequence[State], to: State, **values: Any) -> bool:
        """Move a submission on; False, and nothing changed, when it is in no such state."""
        return self._update(key, origin, state=to, **values)

    def note(self, key: str, origin: Sequence[State], **values: Any) -> bool:
        """Write something about a submission that stays in its state."""
        return self._update(key, origin, **values)

    def _update(self, key: str, origin: Sequence[State], **values: Any) -> bool:
        change = (
            update(lane_submissions)
            .where(lane_submissions.c.key == key, lane_submissions.c.state.in_(origin))
            .values(updated_at=now_us(), **values)
        )
        with self._database.writing() as conn:
            return conn.execute(change).rowcount == 1

    def check_fresh(self) -> None:
        """See, right before a create is sent, that no other worker may send it.

        Raises:
            ConnectionError: One may; nothing has changed.
        """
        self._database.check_fresh()

    def has_room(self, key: str, room: Room) -> bool:
        """Tell whether a create of a prepared submission may be sent now."""
        with self._database.reading() as conn:
            return self._has_room(conn, key, room)

    def intend(
        self, key: str, room: Room, *, intent: str, intended_at: int, input_file: str | None
    ) -> bool:
        """Write down that a create is about to be sent, if there is room for it.

        Returns:
            False when it has to wait, or is no longer prepared; nothing is written then.
        """
        table = lane_submissions
        with self._database.writing() as conn:
            if not self._has_room(conn, key, room):
                return False
            change = (
                update(table)
                .where(table.c.key == key, table.c.state == "prepared", table.c.is_cancelled == 0)
                .values(
                    state="intended",
                    intent=intent,
                    intended_at=intended_at,
                    input_file=input_file,
                    creates=table.c.creates + 1,
                    updated_at=now_us(),
                )
            )
            return conn.execute(change).rowcount == 1

    def _has_room(self, conn: Connection, key: str, room: Room) -> bool:
        table = lane_submissions
        others = (table.c.provider == self._provider, table.c.key != key)
        if room.alone:
            is_open = select(table.c.key).where(
                *others, table.c.state.in_(("intended", "unsettled", "held"))
            )
            if conn.execute(is_open.limit(1)).first() is not None:
                return False
        if room.enqueued_tokens is None:
            return True
        queued: int = conn.execute(
            select(func.coalesce(func.sum(table.c.input_tokens), 0)).where(
                *others, table.c.model == self._model, table.c.state.in_(AT_PROVIDER)
            )
        ).scalar_one()
        own: int = conn.execute(select(table.c.input_tokens).where(table.c.key == key)).scalar_one()
        return queued == 0 or queued + own <= room.enqueued_tokens

    def owned(self) -> frozenset[str]:
        """The ids of all provider batches of this account that are somebody's."""
        wanted = select(lane_submissions.c.provider_batch).where(
            lane_submissions.c.provider == self._provider,
            lane_submissions.c.provider_batch.is_not(None),
        )
        with self._database.reading() as conn:
            return frozenset(conn.execute(wanted).scalars())


def open_submissions(database: Database) -> list[Submission]:
    """Read all submissions that are not collected or refused, held ones first."""
    table = lane_submissions
    wanted = (
        select(table)
        .where(table.c.state.in_(("prepared", *AT_PROVIDER)))
        .order_by(table.c.state != "held", table.c.created_at, table.c.key)
    )
    with database.reading() as conn:
        return [_submission_from(row) for row in conn.execute(wanted)]


def decide_held(database: Database, key: str, *, adopt: str | None) -> bool:
    """Settle a held submission as an operator says.

    Args:
        database: The router's tables.
        key: The submission.
        adopt: The provider's batch that it is; None says that nothing was bought.

    Returns:
        False when no such submission is held; nothing is changed then.
    """
    values: dict[str, Any] = {"trouble": None, "next_at": 0, "updated_at": now_us()}
    if adopt is None:
        values |= {"state": "prepared", "provider_batch": None, "input_file": None}
    else:
        values |= {"state": "accepted", "provider_batch": adopt}
    change = (
        update(lane_submissions)
        .where(lane_submissions.c.key == key, lane_submissions.c.state == "held")
        .values(**values)
    )
    with database.writing() as conn:
        return conn.execute(change).rowcount == 1


def _submission_from(row: Row[Any]) -> Submission:
    """Read a row of `lane_submissions`."""
    trouble = None
    if row.trouble:
        told = json.loads(row.trouble)
        trouble = LaneAnswer(
            None,
            error_code=told["code"],
            error_message=told["message"],
            is_retryable=told["is_retryable"],
        )
    return Submission(
        key=row.key,
        batch_id=row.batch_id,
        provider=row.provider,
        model=row.model,
        state=cast("State", row.state),
        item_count=row.item_count,
        input_tokens=row.input_tokens,
        intent=row.intent,
        intended_at=row.intended_at,
        input_file=row.input_file,
        provider_batch=row.provider_batch,
        creates=row.creates,
        trouble=trouble,
        next_at=row.next_at,
        is_cancelled=bool(row.is_cancelled),
        gave_way=bool(row.gave_way),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def trouble_json(code: str, message: str, *, is_retryable: bool) -> str:
    """Write a trouble as the book keeps it."""
    return json.dumps({"code": code, "message": message, "is_retryable": is_retryable})
