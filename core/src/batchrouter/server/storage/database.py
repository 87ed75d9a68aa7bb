"""One SQL database, opened so that what it says is committed stays so.

There is one writer at a time, and what it reads is still true when it writes: on SQLite a writing
transaction takes the file's write lock at its start (`sqlite.py`), on PostgreSQL one advisory
lock (`postgres.py`). Every read-then-write in the router leans on that.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

__all__ = ["Database", "Fence"]

_READ_ONLY: dict[str, dict[str, Any]] = {
    "sqlite": {"batchrouter_read_only": True},
    # One snapshot for the whole transaction, as SQLite gives it.
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}


class Fence(Protocol):
    """What keeps a process whose work was handed on from doing anything more."""

    def check(self, conn: Connection) -> None:
        """Raise, inside a writing transaction, when this process may write no more."""
        ...

    def check_fresh(self) -> None:
        """Raise `ConnectionError` when money must not be spent now."""
        ...


class Database:
    """The router's tables, and how to read and to write them.

    Args:
        engine: Made by `sqlite.py` or `postgres.py`; durable workflows share it.
        url: The same database, for libraries that open it themselves; holds the password.

    Attributes:
        fence: Looked at in every writing transaction, where several processes share the work.

    Example:
        >>> import tempfile
        >>> from sqlalchemy import func, select
        >>> from batchrouter.server.storage import tables
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     database = Database.open(Path(folder) / "router.db")
        ...     with database.reading() as conn:
        ...         count = conn.execute(select(func.count()).select_from(tables.batches)).scalar()
        ...     database.close()
        >>> count
        0
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine = engine
        self.url = url
        self.fence: Fence | None = None
        self._read_only = _READ_ONLY[engine.dialect.name]

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open the SQLite file, creating it (mode 0600) and its tables when there are none.

        Raises:
            ConfigError: The file was written by a newer router.
        """
        from batchrouter.server.storage.schema import create_schema  # noqa: PLC0415 - it needs this class
        from batchrouter.server.storage.sqlite import open_file  # noqa: PLC0415 - as above

        database = cls(open_file(path), f"sqlite:///{path}")
        create_schema(database)
        return database

    @property
    def is_shared(self) -> bool:
        """Whether other processes may work on the same batches."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a transaction that sees one snapshot and never waits for a writer."""
        with self.engine.connect() as conn:
            yield conn.execution_options(**self._read_only)

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a transaction that holds the write lock; commits at the end, or rolls back."""
        with self.engine.begin() as conn:
            if self.is_shared:
                from batchrouter.server.storage.postgres import take_write_lock  # noqa: PLC0415 - rarely needed

                take_write_lock(conn)
            if self.fence is not None:
                self.fence.check(conn)
            yield conn

    @contextmanager
    def appending(self) -> Generator[Connection]:
        """Open a transaction over rows that only this process writes, beside others of its kind.

        On a shared database many run at once, and none beside a `writing` one, so that the fence
        holds here too; SQLite has one writer in any case.
        """
        with self.engine.begin() as conn:
            if self.is_shared:
                from batchrouter.server.storage.postgres import take_write_lock  # noqa: PLC0415 - rarely needed

                take_write_lock(conn, alone=False)
            if self.fence is not None:
                self.fence.check(conn)
            yield conn

    def check_fresh(self) -> None:
        """See, right before money is spent, that this process is still the one to spend it.

        Raises:
            ConnectionError: Not now; nothing has changed.
        """
        if self.fence is not None:
            self.fence.check_fresh()

    def close(self) -> None:
        """Close every connection; SQLite's last one checkpoints the WAL."""
        self.engine.dispose()
