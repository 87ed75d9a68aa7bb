"""A run's folder on any fsspec URL, and the one lock that a run needs: exclusive create.

Nothing else holds state, so any worker goes on with a run from here. Files are written under
names that no other attempt uses and count only once a journal event names them, so a file of
a dead attempt is litter and never a wrong answer.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchrouter.errors import ConfigError, StorageError

_PRIVATE_DIR = 0o700


@contextmanager
def storage_errors(doing: str) -> Generator[None]:
    """Turn what file systems raise into a StorageError that says what was being done.

    FileExistsError and FileNotFoundError pass: they are answers, not failures.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise StorageError(
            f"{doing} failed: {reason}. Nothing was bought by this step; "
            "mend the storage and run the same run key again to go on."
        ) from error


class RunFolder:
    """Where one run lives, as paths on its file system.

    Attributes:
        fs: The fsspec file system.
        root: The run's folder on it.
        token: Unique to this process's attempt; part of every file name that it writes.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self.token = secrets.token_hex(6)

    @classmethod
    def below(cls, runs_url: str, folder: str, storage_options: dict[str, Any]) -> "RunFolder":
        """Open the folder below a runs URL; creates nothing yet.

        Raises:
            ConfigError: The URL's protocol is unknown, or its library is not installed.
        """
        import fsspec  # noqa: PLC0415 - a DAG file that only names a run must not pay for it

        try:
            fs, root = fsspec.core.url_to_fs(runs_url, **storage_options)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"runs_url: {error}") from error
        return cls(fs, f"{root.rstrip('/')}/{folder}" if folder else root)

    @property
    def is_local(self) -> bool:
        """True when the files are this machine's own."""
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, *names: str) -> str:
        """Join names below the folder."""
        return "/".join((self.root, *names))

    def new_name(self, suffix: str) -> str:
        """Name a file as no other attempt does."""
        return f"{self.token}-{secrets.token_hex(3)}-{suffix}"

    def ensure(self, *names: str) -> str:
        """Make a folder where the file system has such a thing; private on local disk."""
        path = self.path(*names)
        with storage_errors(f"making {names[-1] if names else 'the run folder'}"):
            if self.is_local:
                Path(path).mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIR)
            else:
                self.fs.makedirs(path, exist_ok=True)
        return path

    def create(self, path: str, data: bytes) -> None:
        """Write a whole file if no one else has: of two writers one gets FileExistsError.

        The file is complete and durable when this returns, or it is not there.

        Raises:
            FileExistsError: Another writer was first.
            StorageError: No room, no permission, no connection; nothing was left behind.
        """
        with storage_errors("writing the journal"):
            if self.is_local:
                self._create_locally(path, data)
            else:
                self.fs.pipe_file(path, data, mode="create")

    def _create_locally(self, path: str, data: bytes) -> None:
        # open("xb") alone would let a kill leave a torn file under the final name.
        draft = f"{path}.{self.token}"
        try:
            with Path(draft).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(path).hardlink_to(draft)
        finally:
            with suppress(OSError):
                Path(draft).unlink()
        directory = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self, path: str) -> bytes:
        """Read a small file whole.

        Raises:
            FileNotFoundError: It is not there.
            StorageError: It cannot be read.
        """
        with storage_errors("reading the run folder"):
            data: bytes = self.fs.cat_file(path)
            return data

    def names(self, *folder: str) -> list[str]:
        """List a folder's file names, sorted; empty when the folder is not there."""
        path = self.path(*folder)
        try:
            with storage_errors("listing the run folder"):
                self.fs.invalidate_cache()
                found: list[str] = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def remove_strays(self, folder: str, keep: set[str]) -> None:
        """Remove the files of dead attempts; never fails, since litter is harmless."""
        for name in self.names(folder):
            if name not in keep:
                with suppress(OSError):
                    self.fs.rm_file(self.path(folder, name))
