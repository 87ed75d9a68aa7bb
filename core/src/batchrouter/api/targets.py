"""Where an artifact's bytes go: a path that is filled beside itself, or a caller's writer.

Each byte is kept once and in order, whatever the store sends again. The size that was promised
is a bound: what goes beyond it is refused as it comes, not after the disk is full.
"""

import hashlib
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from batchrouter.api.uploads import CHUNK_BYTES, Progress
from batchrouter.errors import ArtifactError, ProtocolError, StorageError
from batchrouter.killpoints import reached

_OK, _PARTIAL = 200, 206
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Writer(Protocol):
    """Anything with a `write` that takes all the bytes it is given."""

    def write(self, data: bytes, /) -> object: ...  # noqa: D102 - a file's own method


class Target:
    """Where the bytes go, each once and in order, with what is known about them so far."""

    def __init__(self, *, on_progress: Progress | None) -> None:
        self.received = 0
        self.promised: int | None = None
        self._on_progress = on_progress
        self._digest = hashlib.sha256()
        self._skip = 0

    @property
    def sha256(self) -> str:
        """Of everything received."""
        return self._digest.hexdigest()

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take the body if it holds the bytes that come next; see `ByteSink`."""
        if status not in {_OK, _PARTIAL}:
            return False
        if headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError("the store compresses the artifact although nobody asked for it")
        start = 0  # a store that ignores `Range` sends everything, from the start
        if status == _PARTIAL:
            told = _CONTENT_RANGE.match(headers.get("content-range", ""))
            start = int(told[1]) if told else -1
        if not 0 <= start <= self.received:
            raise ProtocolError("the store answers a Range request with another range")
        self._skip = self.received - start
        return True

    def write(self, chunk: bytes) -> None:
        """Keep what is new of the chunk; see `ByteSink`."""
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        if self.promised is not None and self.received + len(chunk) > self.promised:
            raise ArtifactError(f"the artifact is longer than the promised {self.promised} bytes")
        if chunk:
            self.keep(chunk)
            self._count(chunk)
            reached("api.mid_download")

    def report(self) -> None:
        """Tell the caller how far it is; see `ByteSink`."""
        if self._on_progress is not None:
            self._on_progress(self.received, self.promised or 0)

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.received += len(chunk)

    def open(self) -> None:
        """Find out what is there already."""

    def keep(self, chunk: bytes) -> None:
        """Write bytes that are wanted."""
        raise NotImplementedError

    def restart(self) -> None:
        """Drop everything and begin anew; asked only of what `open` found."""

    def discard(self) -> None:
        """Leave nothing of it behind: it is not what was promised."""

    def publish(self) -> None:
        """Make it visible: it is whole."""

    def close(self) -> None:
        """Let go; what came stays for a later attempt."""


class WriterTarget(Target):
    """A caller's own writer: what it was given cannot be taken back."""

    def __init__(self, writer: Writer, *, on_progress: Progress | None) -> None:
        super().__init__(on_progress=on_progress)
        self._writer = writer

    def keep(self, chunk: bytes) -> None:
        """Hand the bytes over."""
        with _storage_errors("the writer that was given"):
            written = self._writer.write(chunk)
        if isinstance(written, int) and written != len(chunk):
            raise StorageError(f"the writer took {written} of {len(chunk)} bytes")


class PathTarget(Target):
    """A file that appears whole, or not at all."""

    def __init__(self, path: Path, *, on_progress: Progress | None) -> None:
        super().__init__(on_progress=on_progress)
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Go on with a part that an earlier process left."""
        with _storage_errors(self._part):
            self._file = self._part.open("a+b")
            self._file.seek(0)
            while chunk := self._file.read(CHUNK_BYTES):
                self._count(chunk)

    def keep(self, chunk: bytes) -> None:
        """Append to the part."""
        assert self._file is not None
        with _storage_errors(self._part):
            self._file.write(chunk)

    def restart(self) -> None:
        """Empty the part."""
        assert self._file is not None
        with _storage_errors(self._part):
            self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.received = 0

    def discard(self) -> None:
        """Remove the part."""
        self.close()
        with _storage_errors(self._part):
            self._part.unlink(missing_ok=True)

    def publish(self) -> None:
        """Rename the part, its bytes on disk first."""
        assert self._file is not None
        with _storage_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            reached("api.before_artifact_kept")
            self._part.replace(self._path)
            reached("api.after_artifact_kept")

    def close(self) -> None:
        """Close the part; nothing of it is lost."""
        if self._file is not None:
            with _storage_errors(self._part):
                self._file.close()


def target_for(to: str | Path | Writer, *, on_progress: Progress | None) -> Target:
    """Choose the target for a path or a writer."""
    if isinstance(to, str | Path):
        return PathTarget(Path(to), on_progress=on_progress)
    return WriterTarget(to, on_progress=on_progress)


@contextmanager
def _storage_errors(where: object) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {where}: {error.strerror or error}") from error
