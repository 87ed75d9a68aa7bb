"""Manifests that lie packed in the run folder: zstd frames of about 1 MiB, one after the other.

The wire has them unpacked: a router takes no other encoding. So size and sha256 of a part are
those of its lines, packed or not, and whoever reads one gets its lines.
"""

import io
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

SUFFIX = ".zst"
_LEVEL = 3
"""As fast as level 1 on prompts, and a little smaller."""
_FRAME_BYTES = 1 << 20
_BUFFER_BYTES = 2 << 20


class PackedWriter:
    """Packs what is written to a file; holds a frame at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._codec = pa.Codec("zstd", compression_level=_LEVEL)
        self._held = bytearray()

    def write(self, data: memoryview) -> None:
        """Take some bytes."""
        self._held += data
        if len(self._held) >= _FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._codec.compress(bytes(self._held), asbytes=True))
        self._held.clear()

    def close(self) -> None:
        """Write the last frame."""
        if self._held:
            self._flush()
        self._file.close()

    def discard(self) -> None:
        """Let go of the file, as far as its store can."""
        self._held.clear()
        getattr(self._file, "discard", self._file.close)()


class _Unpacked(io.BufferedIOBase):
    """The lines of a packed file, from its beginning on."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._at_byte = 0
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = None if size is None or size < 0 else size
        data = cast("bytes", self._stream.read(wanted))
        self._at_byte += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if (offset, whence) != (self._at_byte, 0):
            raise io.UnsupportedOperation("a packed manifest is read from its beginning")
        return offset

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()


def open_manifest(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    """Open a manifest of the run folder for one reading from its beginning.

    Raises:
        OSError: It cannot be read. What is not what was packed has no `errno`.
    """
    file = fs.open(path, "rb", block_size=_BUFFER_BYTES)
    return cast("BinaryIO", _Unpacked(file) if path.endswith(SUFFIX) else file)
