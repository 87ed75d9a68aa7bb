"""A manifest on its way up: multipart framing around a file that is never held whole.

The length is known before the first byte, so the request carries ``Content-Length`` and a
router can refuse what is too large at once. Every attempt opens the source anew.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

from batchrouter.api.offload import in_thread
from batchrouter.errors import ConfigError, StorageError
from batchrouter.killpoints import reached

CHUNK_BYTES = 1 << 20
"""Memory of an upload: a few of these. Smaller ones cost a thread switch each in async."""

_MAX_FILENAME_CHARS = 255

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; an upload that is repeated starts at 0 again."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file part of known size, to be opened at every attempt."""

    open_source: Callable[[], BinaryIO]
    filename: str
    size_bytes: int
    on_progress: Progress | None = None
    boundary: str = field(default_factory=lambda: f"batchrouter-{secrets.token_hex(16)}")

    @property
    def content_type(self) -> str:
        """The request's ``Content-Type``."""
        return f"multipart/form-data; boundary={self.boundary}"

    @property
    def content_length(self) -> int:
        """Bytes of the whole body, framing included."""
        return len(self._head) + self.size_bytes + len(self._tail)

    @property
    def _head(self) -> bytes:
        # Names are escaped as browsers do it (WHATWG, multipart/form-data encoding).
        name = self.filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        return (
            f"--{self.boundary}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()

    @property
    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()

    def body(self) -> Iterator[bytes]:
        """Yield the request's body, reading as it goes.

        Raises:
            StorageError: The source cannot be read, or is not as long as it was.
        """
        yield self._head
        sent = 0
        with closing(self._read()) as chunks:
            for chunk in chunks:
                yield chunk
                sent = self._advance(sent, chunk)
        yield self._tail

    async def abody(self) -> AsyncIterator[bytes]:
        """Yield the same, reading in a thread, so that the event loop never waits for a disk."""
        yield self._head
        sent = 0
        with closing(self._read()) as chunks:
            while chunk := await in_thread(lambda: next(chunks, b"")):
                yield chunk
                sent = self._advance(sent, chunk)
        yield self._tail

    def _advance(self, sent: int, chunk: bytes) -> int:
        reached("api.mid_upload")
        if self.on_progress is not None:
            self.on_progress(sent + len(chunk), self.size_bytes)
        return sent + len(chunk)

    def _read(self) -> Generator[bytes, None, None]:
        left = self.size_bytes
        try:
            with self.open_source() as source:
                while chunk := source.read(min(CHUNK_BYTES, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        break
                    yield chunk
        except OSError as error:
            raise StorageError(f"cannot read the manifest {self.filename}: {error}") from error
        if left:
            raise StorageError(
                f"the manifest {self.filename} is no longer {self.size_bytes} bytes long: "
                "something writes to it while it is uploaded"
            )


def prepare_upload(
    source: str | Path | Callable[[], BinaryIO],
    *,
    filename: str | None,
    size_bytes: int | None,
    on_progress: Progress | None,
) -> Upload:
    """Find out how long the source is; nothing of it is read.

    Raises:
        StorageError: It cannot be opened.
        ConfigError: It cannot seek and no size was given.
    """
    if callable(source):
        opener, name = source, filename or "manifest.jsonl"
    else:
        path = Path(source)
        opener, name = (lambda: path.open("rb")), filename or path.name
    last_component = name.replace("\\", "/").rpartition("/")[2][-_MAX_FILENAME_CHARS:]
    try:
        size = _measure(opener) if size_bytes is None else size_bytes
    except OSError as error:
        raise StorageError(f"cannot read the manifest {name}: {error}") from error
    return Upload(opener, last_component or "manifest.jsonl", size, on_progress)


def _measure(opener: Callable[[], BinaryIO]) -> int:
    with opener() as opened:
        if not opened.seekable():
            raise ConfigError("this manifest source cannot seek: give size_bytes")
        return opened.seek(0, SEEK_END)
