"""PostgreSQL, for any number of processes on the same state.

Writers are serial, as SQLite's are: each writing transaction takes one advisory lock before it
reads anything. At READ COMMITTED every statement behind the lock sees all that former holders have
committed, and nobody else commits before the holder does; so whatever is proven for one writer
at a time holds here. Transactions are short and by chunk, never by item, and several hundred a
second fit through the lock.

Whoever stops while holding it (a process that is suspended, a host that is gone) loses its
session after `_IDLE_S`: its transaction is rolled back, and the others go on.
"""

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from batchrouter.errors import ConfigError
from batchrouter.server.storage.database import Database

__all__ = ["connect", "read_url", "take_write_lock"]

#: How long a session may do nothing inside a transaction; above any pause of a healthy process.
_IDLE_S = 20
#: How long a writer waits for its turn; above `_IDLE_S`, after which a dead holder's turn ends.
_TURN_S = 60
_CONNECT_S = 10
#: "batchrou" as a number: advisory locks share one space a database.
_WRITE_LOCK = int.from_bytes(b"batchrou", "big")
_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+psycopg"})


def read_url(given: str) -> URL:
    """Read a `postgresql://…` URL.

    Raises:
        ConfigError: It is none; what was given is not quoted, since it may hold a password.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in _SCHEMES or not url.database:
        raise ConfigError(
            "database: must be postgresql://USER:PASSWORD@HOST/DATABASE; leave it out for SQLite in"
            " the data folder"
        )
    return url.set(drivername="postgresql+psycopg")


def connect(given: str) -> Database:
    """Open a database whose tables `batchrouter migrate` has made; see `schema.py` for them.

    Args:
        given: `postgresql://…`.

    Raises:
        ConfigError: The URL is wrong, or nothing answers there.
    """
    url = read_url(given)
    engine = _engine(url)
    try:
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
    except OperationalError as error:
        engine.dispose()
        # The driver's message names host, port and user, and never the password.
        told = str(error.orig).strip().replace(url.password or "\0", "…")
        shown = url.set(drivername="postgresql").render_as_string(hide_password=True)
        raise ConfigError(f"the database {shown} does not answer: {told}") from None
    return Database(engine, url.render_as_string(hide_password=False))


def take_write_lock(conn: Connection, *, alone: bool = True) -> None:
    """Wait for this transaction's turn to write; it ends with the transaction.

    Not alone, it is shared with others who take it so.
    """
    kind = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    conn.exec_driver_sql(f"SELECT {kind}({_WRITE_LOCK})")


def _engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=5,
        max_overflow=15,
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT_S, "application_name": "batchrouter"},
        # Parameters hold prompts and secrets: no error may show them.
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def configure(dbapi: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction] - called by SQLAlchemy
        with dbapi.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_S}s'")
            cursor.execute(f"SET lock_timeout = '{_TURN_S}s'")
            # A database may be set up to lose its last commits; an intent to buy must not be one.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        dbapi.commit()

    return engine
