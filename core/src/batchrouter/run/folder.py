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
    """Turn what the system raises into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise _storage_error(doing, error) from error


@contextmanager
def _store_errors(doing: str, *answers: type[OSError]) -> Generator[None]:
    """As `storage_errors`, around the store alone: there any exception is the store's.

    Each fsspec back end lets some exceptions of its own library through (botocore, aiohttp,
    google.auth), and they share no base. `answers` pass: they are no failures.
    """
    try:
        yield
    except answers:
        raise
    except Exception as error:
        raise _storage_error(doing, error) from error


def _storage_error(doing: str, error: Exception) -> StorageError:
    # Only an OSError's text is shown: those of others may hold a signed URL.
    told = (error.strerror or str(error)) if isinstance(error, OSError) else ""
    return StorageError(
        f"{doing} failed: {told or type(error).__name__}. No purchase is lost or made twice by "
        "that: mend the storage and run the same run key again to go on."
    )


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
        except (ValueError, TypeError, ImportError) as error:
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
        with _store_errors(f"making {names[-1] if names else 'the run folder'}"):
            if self.is_local:
                # The mode is that of the last folder alone: those on the way have the umask's.
                Path(self.root).mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIR)
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
        with _store_errors("writing the journal", FileExistsError):
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
        with _store_errors("reading the run folder", FileNotFoundError):
            try:
                data: bytes = self.fs.cat_file(path)
            except NotADirectoryError:
                # A stray file stands where a run's folder would.
                raise FileNotFoundError(path) from None
            return data

    def names(self, *folder: str) -> list[str]:
        """List a folder's file names, sorted; empty when the folder is not there."""
        path = self.path(*folder)
        try:
            with _store_errors("listing the run folder", FileNotFoundError, NotADirectoryError):
                self.fs.invalidate_cache()
                found: list[str] = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def files(self, *folder: str) -> dict[str, int]:
        """Find all files below a folder: their paths, and their sizes in bytes.

        Raises:
            StorageError: The folder cannot be read.
        """
        path = self.path(*folder)
        with _store_errors("listing the run folder"):
            self.fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self.fs.find(path, detail=True)
        return {name: int(info["size"] or 0) for name, info in sorted(found.items())}

    def remove(self, path: str) -> None:
        """Remove a file; that it is gone already is fine.

        Raises:
            StorageError: It cannot be removed.
        """
        with suppress(FileNotFoundError), _store_errors("removing a file", FileNotFoundError):
            self.fs.rm_file(path)

    def remove_empty(self) -> None:
        """Remove the folder and those in it, so far as they are empty; never fails."""
        if not self.is_local:
            return
        for path in sorted(Path(self.root).rglob("*"), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            Path(self.root).rmdir()

    def remove_strays(self, folder: str, keep: set[str]) -> None:
        """Remove the files of dead attempts; never fails, since litter is harmless."""
        with suppress(StorageError):
            for name in set(self.names(folder)) - keep:
                with _store_errors("removing litter"):
                    self.fs.rm_file(self.path(folder, name))

    def size_of(self, path: str) -> int | None:
        """A file's size in bytes; None when it is not there.

        Raises:
            StorageError: The store does not tell.
        """
        try:
            with _store_errors("looking into the run folder", FileNotFoundError):
                self.fs.invalidate_cache()
                size: int = self.fs.size(path)
                return size
        except FileNotFoundError:
            return None
