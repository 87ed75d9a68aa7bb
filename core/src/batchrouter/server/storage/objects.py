"""Manifests, chunk results and artifacts, as objects under opaque keys.

A key is written once, whole: `ObjectWriter.commit` makes all of it visible and durable, and a
writer that is dropped leaves nothing. Keys: `manifests/<file id>.jsonl`,
`work/<batch id>/<chunk>.jsonl`, `artifacts/<batch id>.jsonl`.
"""

import errno
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from batchrouter import killpoints
from batchrouter.errors import ConfigError

__all__ = ["ObjectWriter", "Objects", "StoreFullError"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRITE_BUFFER_BYTES = 8 * 1024 * 1024
_READ_BLOCK_BYTES = 1024 * 1024
_SCHEMES = frozenset({"s3", "gs", "az"})
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class StoreFullError(OSError):
    """The object store has no room left; what was being written is gone."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "the object store is full")


class ObjectWriter:
    """One object in the making: `write` in order, then `commit`.

    As a context manager it aborts unless `commit` was called.
    """

    def __init__(self, objects: "Objects", key: str) -> None:
        self._objects = objects
        self._key = key
        self._file = obstore.open_writer(objects.store, key, buffer_size=_WRITE_BUFFER_BYTES)
        self.written_bytes = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block.

        Raises:
            StoreFullError: No room; the object will not exist.
        """
        with _full_store_told():
            self._file.write(block)
        self.written_bytes += len(block)

    def commit(self) -> None:
        """Make the object visible under its key, and durable before this returns.

        Raises:
            StoreFullError: No room; the object does not exist.
        """
        killpoints.reached("objects.before_commit")
        with _full_store_told():
            self._file.close()
            self._objects.sync(self._key)
        killpoints.reached("objects.after_commit")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A store's writer that is dropped without `close` takes its staged bytes with it.
        del self._file


class Objects:
    """Objects by key, in a local folder or in a store that speaks S3 (or Google's, or Azure's).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     objects = Objects.local(Path(folder) / "objects")
        ...     written = objects.put("work/b/0.jsonl", [b"one", b" two"])
        ...     objects.get_range("work/b/0.jsonl", 4, 7)
        b'two'
    """

    def __init__(self, store: ObjectStore, root: Path | None) -> None:
        self.store = store
        self._root = root

    @classmethod
    def open(cls, location: str) -> Self:
        """Open `s3://bucket/prefix`, `gs://…`, `az://…`, or a folder, which is made if absent.

        Credentials, region and endpoint come from the store's usual environment variables
        (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …).

        Raises:
            ConfigError: There is no such kind of store, the folder cannot be made, or the store
                does not let its objects be listed.
        """
        parts = urlsplit(location)
        if "://" not in location:
            try:
                return cls.local(Path(location).absolute())
            except OSError as error:
                raise ConfigError(f"objects: {location}: {error.strerror}") from None
        if parts.scheme not in _SCHEMES or not parts.netloc or parts.query or parts.password:
            raise ConfigError("objects: must be s3://BUCKET/PREFIX, gs://…, az://…, or a folder")
        endpoints = [os.environ.get(name, "") for name in _ENDPOINT_VARIABLES]
        is_plain = any(endpoint.startswith("http://") for endpoint in endpoints)
        store = from_url(location, client_options={"allow_http": is_plain})
        try:
            obstore.list(store, "manifests", chunk_size=1).collect()
        except (BaseError, OSError) as error:
            raise ConfigError(
                f"objects: {location} cannot be listed ({type(error).__name__}): does the bucket"
                " exist, and are its credentials and endpoint in the environment?"
            ) from None
        return cls(store, None)

    @classmethod
    def local(cls, root: Path) -> Self:
        """Keep objects in a folder, which is created with mode 0700."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(LocalStore(root), root)

    def open_writer(self, key: str) -> ObjectWriter:
        """Begin an object; nothing is visible under `key` before its `commit`."""
        return ObjectWriter(self, key)

    def put(self, key: str, blocks: Iterable[bytes]) -> int:
        """Write an object whole and durably; returns its size in bytes.

        Raises:
            StoreFullError: No room; the object does not exist.
        """
        with self.open_writer(key) as writer:
            for block in blocks:
                writer.write(block)
            writer.commit()
            return writer.written_bytes

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Read the bytes [start, end).

        Raises:
            FileNotFoundError: There is no such object.
        """
        if end <= start:
            return b""
        return bytes(obstore.get_range(self.store, key, start=start, end=end))

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Read the bytes [start, end) in blocks of about a MiB, in flat memory.

        Raises:
            FileNotFoundError: There is no such object.
        """
        stop = self.size_bytes(key) if end is None else end
        if stop is None:
            raise FileNotFoundError(key)
        while start < stop:
            block = self.get_range(key, start, min(start + _READ_BLOCK_BYTES, stop))
            yield block
            start += len(block)

    def size_bytes(self, key: str) -> int | None:
        """Tell an object's size; None when there is none."""
        try:
            return obstore.head(self.store, key)["size"]
        except FileNotFoundError:
            return None

    def signed_url(self, key: str, *, for_s: int) -> str | None:
        """Sign a URL by which an object can be read for so long; None for a local folder's."""
        if self._root is not None:
            return None
        return obstore.sign(self.store, "GET", key, timedelta(seconds=for_s))  # pyright: ignore[reportArgumentType, reportCallIssue]

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is deleted already."""
        try:
            obstore.delete(self.store, key)
        except FileNotFoundError:
            return

    def keys(self, prefix: str, *, before_s: float | None = None) -> Iterator[str]:
        """List the keys of a folder, in no order, a page at a time.

        Args:
            prefix: The folder.
            before_s: Only what was written before this Unix time.
        """
        for page in obstore.list(self.store, prefix):
            for meta in cast("Iterable[dict[str, Any]]", page):
                if before_s is None or meta["last_modified"].timestamp() < before_s:
                    yield meta["path"]

    def delete_unfinished(self, *, before_s: float) -> int:
        """Delete what writers that were killed have staged; returns how many files.

        Args:
            before_s: Unix time of this process's start: a live writer's file is newer.
        """
        if self._root is None:
            return 0
        # The local store stages `key` as `key#N` beside it.
        staged = [path for path in self._root.rglob("*#*") if path.stat().st_mtime < before_s]
        for path in staged:
            path.unlink(missing_ok=True)
        return len(staged)

    def sync(self, key: str) -> None:
        """Flush a local object and the names on its way to disk; other stores do so themselves."""
        if self._root is None:
            return
        path = self._root / key
        while True:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if path == self._root:
                return
            path = path.parent


@contextmanager
def _full_store_told() -> Generator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        # obstore gives the system's error as text only, under either type.
        if "os error 28" in str(error) or getattr(error, "errno", None) in _FULL:
            raise StoreFullError from None
        raise
