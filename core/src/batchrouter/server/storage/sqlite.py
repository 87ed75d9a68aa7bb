"""SQLite in WAL with `synchronous=FULL`: a commit is on disk before anybody is told of it.

Every writing transaction takes the write lock at its start (`BEGIN IMMEDIATE`), so that what it
read is still true when it writes.
"""

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event

__all__ = ["LEAN", "open_file"]

_BUSY_TIMEOUT_MS = 30_000
# Of each connection, and there are dozens: with SQLite's 2 MB of pages and Python's 128 prepared
# statements the router grew for hours, until all had filled theirs. Pages that are not in it are in
# the system's cache.
_CACHE_KIB = 256
_CACHED_STATEMENTS = 32


class _LeanConnection(sqlite3.Connection):
    """One that keeps few pages from its first statement on, whoever opens it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


LEAN: Mapping[str, Any] = {"factory": _LeanConnection, "cached_statements": _CACHED_STATEMENTS}
"""What each connection to the file is opened with: ours, and those of the durable workflows."""


def open_file(path: Path) -> Engine:
    """Make an engine over a file, which is created (mode 0600) when it is not there."""
    # WAL and shared-memory files take the mode of the file that they stand beside.
    # A file that exists is left alone: closing it would drop every lock that this process has
    # on it (POSIX), and another connection's WAL could be deleted under it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    # Parameters hold prompts and secrets: no error may show them.
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=10,
        max_overflow=20,
        hide_parameters=True,
        connect_args=dict(LEAN),
    )

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
