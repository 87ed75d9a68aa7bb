"""A worker's right to work, where several share a database.

Each worker has a name of its own and a row that it renews every few seconds. Whose row has not
been renewed for as long as a lease lasts is taken for dead: another worker marks the row as taken,
holding the write lock, and hands the dead one's work on. A lease that was taken never comes back.

What fences is the row, and not a clock: every writing transaction of a worker looks at its own row
behind the write lock (`Database.fence`). A process that was only stopped (SIGSTOP, a paused
machine, a lost network) can change nothing after its work was handed on: no chunk, no money, and
no intent, which stands in the book before anything is bought. It ends as soon as it notices.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Connection, select, update
from sqlalchemy.exc import SQLAlchemyError

from batchrouter.server.storage.clock import database_now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import workers

__all__ = ["Lease", "LeaseLostError"]

_log = logging.getLogger(__name__)

#: A lease is renewed this often while it lasts.
_RENEWALS = 6
_US = 1_000_000
_MAX_HOST_CHARS = 255
#: For how long the row of a worker that has ended is kept, for people.
_KEPT_US = 86_400 * _US


class LeaseLostError(Exception):
    """Another worker has taken this one's work over: it may change nothing any more."""


class Lease:
    """One worker's lease, and its eye on the others'.

    Args:
        database: Shared with the other workers.
        worker_id: This process's name; never used again.
        lease_s: How long a worker may be silent before it is taken for dead.
        hand_on: Given the living workers' names; hands on what all others had begun.
        on_lost: Called once when this worker's lease was taken.

    Example:
        >>> lease = Lease(database, "worker-1", 30.0, hand_on, stop)    # doctest: +SKIP
        >>> lease.take()                                                 # doctest: +SKIP
        >>> lease.keep()                                                 # doctest: +SKIP
        >>> lease.end(give_back=True)                                   # doctest: +SKIP
    """

    def __init__(
        self,
        database: Database,
        worker_id: str,
        lease_s: float,
        hand_on: Callable[[frozenset[str]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._hand_on = hand_on
        self._on_lost = on_lost
        self._renewed_at = time.monotonic()
        self._is_lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Enter this worker; from now on its writes are fenced."""
        with self._database.writing() as conn:
            now = database_now_us(conn)
            conn.execute(
                workers.insert().values(
                    id=self._worker_id,
                    host=socket.gethostname()[:_MAX_HOST_CHARS],
                    started_at=now,
                    renewed_at=now,
                )
            )
        self._renewed_at = time.monotonic()
        self._database.fence = self

    def keep(self) -> None:
        """Renew the lease and look after the others', in a thread, until its end."""
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def end(self, *, give_back: bool) -> None:
        """Renew no more; given back, what this worker has left unfinished is handed on at once."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if not give_back:
            return
        try:
            with self._database.writing() as conn:
                self._mark_taken(conn, workers.c.id == self._worker_id)
        except (SQLAlchemyError, LeaseLostError) as error:
            _log.warning("the lease was not given back: %s", type(error).__name__)

    def check(self, conn: Connection) -> None:
        """See, inside a writing transaction, that the lease was not taken.

        Raises:
            LeaseLostError: It was.
        """
        taken_at = conn.execute(
            select(workers.c.taken_at).where(workers.c.id == self._worker_id)
        ).one_or_none()
        if taken_at is None or taken_at[0] is not None:
            self._lose()
            raise LeaseLostError(self._worker_id)

    def check_fresh(self) -> None:
        """See, right before money is spent, that nobody can have taken the lease yet.

        Raises:
            ConnectionError: It was not renewed in time: nothing may be bought until it is.
        """
        if time.monotonic() - self._renewed_at >= self._lease_s:
            raise ConnectionError("this worker's lease was not renewed in time")

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            _log.error("another worker has taken over the work of %s", self._worker_id)
            self._on_lost()

    def _keep(self) -> None:
        while True:
            try:
                if not self._renew():
                    self._lose()
                    return
                self._look_after_others()
            except LeaseLostError:
                return
            except Exception as error:  # noqa: BLE001 - a database that is away comes back
                _log.warning("the lease could not be renewed: %s", type(error).__name__)
            if self._ended.wait(self._lease_s / _RENEWALS):
                return

    def _renew(self) -> bool:
        # Taken before the statement: the lease is counted from when it was asked for.
        asked_at = time.monotonic()
        mine = (workers.c.id == self._worker_id, workers.c.taken_at.is_(None))
        # Without the write lock: a busy lock must not make a worker look dead.
        with self._database.engine.begin() as conn:
            change = update(workers).where(*mine).values(renewed_at=database_now_us(conn))
            renewed = conn.execute(change).rowcount == 1
        if renewed:
            self._renewed_at = asked_at
        return renewed

    def _look_after_others(self) -> None:
        with self._database.reading() as conn:
            silent_since = database_now_us(conn) - int(self._lease_s * _US)
            is_silent = (workers.c.taken_at.is_(None), workers.c.renewed_at < silent_since)
            silent = conn.execute(select(workers.c.id).where(*is_silent)).scalars().all()
        if silent:
            with self._database.writing() as conn:
                self._mark_taken(conn, *is_silent)
            _log.warning("taken for dead, and their work handed on: %s", ", ".join(silent))
        with self._database.reading() as conn:
            living = select(workers.c.id).where(workers.c.taken_at.is_(None))
            names = frozenset(conn.execute(living).scalars())
        self._hand_on(names)

    def _mark_taken(self, conn: Connection, *which: ColumnElement[bool]) -> None:
        now = database_now_us(conn)
        conn.execute(update(workers).where(*which).values(taken_at=now))
        conn.execute(workers.delete().where(workers.c.taken_at < now - _KEPT_US))
