"""One process a data folder: SQLite, the durable engine's identity and the object store need it.

Two engines with one executor id would run each other's steps a second time. Processes that share a
PostgreSQL have names of their own, and may share a folder too: they take the lock together.
"""

import fcntl
import os
from pathlib import Path

from batchrouter.errors import ConfigError

__all__ = ["FolderLock"]


class FolderLock:
    """An advisory lock that the operating system lets go of when the process dies.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = FolderLock.acquire(Path(folder) / "lock")
        ...     lock.release()
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False) -> "FolderLock":
        """Take the lock.

        Args:
            path: The file; made when it is not there.
            shared: Beside others who take it so, and never beside one who does not.

        Raises:
            ConfigError: Another process holds it.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"another router serves {path.parent}: stop it, or use another data folder"
            ) from None
        return cls(descriptor)

    def release(self) -> None:
        """Let go; again is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
