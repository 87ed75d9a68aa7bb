"""An inbox in a database: one counter row gives every event its turn.

The counter is updated first in each transaction. Its row lock makes writers take turns, so
numbers become visible in their order, in every database: a reader that has seen 6 has seen 5.
A database's own sequence promises no such thing, and a cursor over it loses events.
"""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from batchrouter.api.settings import masked_url
from batchrouter.errors import ConfigError, StorageError
from batchrouter.killpoints import reached
from batchrouter.webhooks.inbox import KEPT, check_retention
from batchrouter.webhooks.signing import Event

_BUSY_TIMEOUT_S = 30

_metadata = sa.MetaData()

_events = sa.Table(
    "batchrouter_inbox",
    _metadata,
    sa.Column("turn", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.String(255), nullable=False, unique=True),
    sa.Column("received_at", sa.BigInteger, nullable=False),  # Unix seconds
    sa.Column("event", sa.Text, nullable=False),
)

_counter = sa.Table(
    "batchrouter_inbox_counter",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
)


class SqlInbox:
    """See `batchrouter.webhooks.inbox.Inbox`."""

    def __init__(self, url: str) -> None:
        self._shown = masked_url(url)
        arguments: dict[str, Any] = {"timeout": _BUSY_TIMEOUT_S} if url.startswith("sqlite") else {}
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=True, connect_args=arguments)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            # Not chained: SQLAlchemy's message repeats the URL, password included.
            raise ConfigError(
                f"inbox_url {self._shown}: no driver for it is installed, or it is no "
                f"SQLAlchemy URL ({type(error).__name__})"
            ) from None
        self._create()

    def put(self, event: Event) -> bool:
        """See `Inbox.put`."""
        known = sa.select(_events.c.turn).where(_events.c.event_id == event.id)
        reached("webhooks.before_put")
        with self._told("written"), self._engine.begin() as connection:
            connection.execute(sa.update(_counter).values(turn=_counter.c.turn + 1))
            if connection.execute(known).first() is not None:
                return False
            turn = connection.execute(sa.select(_counter.c.turn)).scalar_one()
            connection.execute(
                sa.insert(_events).values(
                    turn=turn,
                    event_id=event.id,
                    received_at=int(time.time()),
                    event=json.dumps(event.to_dict()),
                )
            )
        reached("webhooks.after_put")
        return True

    def events_since(self, cursor: str | None) -> tuple[list[Event], str]:
        """See `Inbox.events_since`."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
            raise ConfigError(f"{cursor!r} is no cursor of a database inbox")
        last = int(cursor or 0)
        wanted = (
            sa
            .select(_events.c.turn, _events.c.event)
            .where(_events.c.turn > last)
            .order_by(_events.c.turn)
        )
        with self._told("read"), self._engine.connect() as connection:
            rows = connection.execute(wanted).all()
        events = [Event.from_dict(json.loads(row.event)) for row in rows]
        return events, str(rows[-1].turn if rows else last)

    def prune(self, older_than: timedelta = KEPT) -> int:
        """See `Inbox.prune`."""
        check_retention(older_than)
        before = int(time.time() - older_than.total_seconds())
        old = sa.delete(_events).where(_events.c.received_at < before)
        with self._told("pruned"), self._engine.begin() as connection:
            return connection.execute(old).rowcount

    def close(self) -> None:
        """See `Inbox.close`."""
        self._engine.dispose()

    def __repr__(self) -> str:
        return f"SqlInbox({self._shown})"

    def _create(self) -> None:
        """Make tables and counter; of two processes that do so at once, both succeed."""
        first_turn = sa.insert(_counter).values(id=1, turn=0)
        with self._told("opened"):
            for table in (_counter, _events):
                try:
                    with self._engine.begin() as connection:
                        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                except SQLAlchemyError:
                    # Postgres lets one of two concurrent IF NOT EXISTS fail; the table stands.
                    with self._engine.connect() as connection:
                        connection.execute(sa.select(table).limit(0))
            with self._engine.begin() as connection:
                is_new = connection.execute(sa.select(_counter.c.id)).first() is None
            if is_new:
                try:
                    with self._engine.begin() as connection:
                        connection.execute(first_turn)
                except IntegrityError:
                    pass  # the other process was first

    @contextmanager
    def _told(self, done: str) -> Generator[None, None, None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or type(error).__name__)
            raise StorageError(
                f"the inbox {self._shown} cannot be {done}: {reason.splitlines()[0]}"
            ) from None
