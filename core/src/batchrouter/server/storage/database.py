"""One SQL database, opened so that what it says is committed stays so.

SQLite in WAL with `synchronous=FULL`: a commit is on disk before anybody is told of it. Every
writing transaction takes the write lock at its start (`BEGIN IMMEDIATE`), so that what it read
is still true when it writes.
"""

import contextlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select

from batchrouter.errors import ConfigError
from batchrouter.server.storage import tables

__all__ = ["Database"]

_BUSY_TIMEOUT_MS = 30_000


class Database:
    """The router's tables, and how to read and to write them.

    Args:
        engine: An engine made by `Database.open`; durable workflows share it.

    Example:
        >>> import tempfile
        >>> from sqlalchemy import func, select
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     database = Database.open(Path(folder) / "router.db")
        ...     with database.reading() as conn:
        ...         count = conn.execute(select(func.count()).select_from(tables.batches)).scalar()
        ...     database.close()
        >>> count
        0
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open the SQLite file, creating it (mode 0600) and its tables when there are none.

        Raises:
            ConfigError: The file was written by a newer router.
        """
        # WAL and shared-memory files take the mode of the file that they stand beside.
        # A file that exists is left alone: closing it would drop every lock that this process has
        # on it (POSIX), and another connection's WAL could be deleted under it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        database = cls(create_sqlite_engine(path))
        database._create_schema()
        return database

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a transaction that sees one snapshot and never waits for a writer."""
        with self.engine.connect() as conn:
            yield conn.execution_options(batchrouter_read_only=True)

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a transaction that holds the write lock; commits at the end, or rolls back."""
        with self.engine.begin() as conn:
            yield conn

    def close(self) -> None:
        """Close every connection; the last one checkpoints the WAL."""
        self.engine.dispose()

    def _create_schema(self) -> None:
        with self.writing() as conn:
            if not inspect(conn).has_table(tables.schema_version.name):
                tables.metadata.create_all(conn)
                conn.execute(tables.schema_version.insert().values(version=tables.SCHEMA_VERSION))
                return
            found = conn.execute(select(tables.schema_version.c.version)).scalar_one()
            if found == tables.SCHEMA_VERSION:
                # A table that was added since does not disturb an older router.
                tables.metadata.create_all(conn)
        if found != tables.SCHEMA_VERSION:
            raise ConfigError(
                f"the data folder has schema version {found}, and this router works with"
                f" {tables.SCHEMA_VERSION}: install the router that wrote it, or use another folder"
            )


def create_sqlite_engine(path: Path) -> Engine:
    """Make an engine with the settings that the whole router relies on; opens nothing yet."""
    # Parameters hold prompts and secrets: no error may show them.
    engine = create_engine(f"sqlite:///{path}", pool_size=10, max_overflow=20, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(dbapi: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction] - called by SQLAlchemy
        # The driver must not begin transactions of its own: `begin` below does.
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:  # pyright: ignore[reportUnusedFunction] - called by SQLAlchemy
        read_only = conn.get_execution_options().get("batchrouter_read_only", False)
        conn.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
