"""Where verified events wait for the processes that can use them.

The receiver puts, any number of watchers read, each with a cursor of its own. A SQLAlchemy URL
serves one host (SQLite) or many (Postgres); an fsspec folder serves workers that share nothing
else. Events are hints: an inbox may hand one out twice, and the API's state decides.
"""

from datetime import timedelta
from typing import Any, Protocol

from batchrouter.errors import ConfigError
from batchrouter.webhooks.signing import Event

REMEMBERED = timedelta(hours=26)
"""Ids are known at least this long: a bare signature counts for 25 h (contract section 7)."""

KEPT = timedelta(days=7)
"""What `Inbox.prune` leaves unless told otherwise."""

_SQL_SCHEMES = frozenset({"sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql"})


class Inbox(Protocol):
    """Events, in the order in which they arrived."""

    def put(self, event: Event) -> bool:
        """Keep an event; False when its id is known already.

        Raises:
            StorageError: It could not be kept: the sender must send it again.
        """
        ...

    def events_since(self, cursor: str | None) -> tuple[list[Event], str]:
        """Return what arrived after a cursor, and the cursor for the next time.

        Args:
            cursor: What the last call returned; None for everything that is kept.

        Raises:
            StorageError: The inbox cannot be read now.
            ConfigError: The cursor is none of this inbox.
        """
        ...

    def prune(self, older_than: timedelta = KEPT) -> int:
        """Forget what arrived longer ago, at least 26 h; return how many events that were.

        Raises:
            StorageError: The inbox cannot be changed now.
            ConfigError: Less than 26 h: a delivery could then be sent again unnoticed.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


def open_inbox(url: str, **storage_options: Any) -> Inbox:
    """Open an inbox, made if it is not there.

    Args:
        url: A SQLAlchemy URL (``sqlite:///inbox.db``, ``postgresql+psycopg://…``), or a folder:
            a path or any fsspec URL.
        storage_options: For fsspec.

    Raises:
        ConfigError: No driver for this URL is installed.
        StorageError: It cannot be reached, or not be made.

    Example:
        >>> inbox = open_inbox("memory://docs/inbox")
        >>> inbox.events_since(None)[0]
        []
    """
    scheme, separator, _ = url.partition("://")
    # Each only where it is used: SQLAlchemy alone costs a DAG file 0.2 s.
    if separator and scheme.partition("+")[0] in _SQL_SCHEMES:
        from batchrouter.webhooks.sql_inbox import SqlInbox  # noqa: PLC0415 - see above

        return SqlInbox(url)
    from batchrouter.webhooks.folder_inbox import FolderInbox  # noqa: PLC0415 - see above

    return FolderInbox(url, storage_options)


def check_retention(older_than: timedelta) -> None:
    """Refuse to forget ids that a sender could still use.

    Raises:
        ConfigError: It is less than 26 h.
    """
    if older_than < REMEMBERED:
        raise ConfigError(f"older_than: {older_than} is less than the 26 hours of a replay")
