"""Quarantine: the lines of an artifact that land nowhere, kept with their place and the reason.

One file a part, made when the first line needs it: ``{"byte_offset", "reason", "raw"}``, or
``raw_base64`` where the line is not UTF-8. Of a longer line only the first MiB is kept; the
offset finds the rest.
"""

import base64
import contextlib
from types import TracebackType
from typing import IO, Any, Literal, Self, cast

import fsspec
import msgspec

from batchrouter.killpoints import reached

MAX_RAW_BYTES = 1 << 20

Kind = Literal["unreadable", "unknown", "duplicate"]


class Rejects:
    """Rejected lines of one part, counted by kind; a context manager that closes the file.

    Args:
        fs: The run's filesystem.
        path: Where the file goes; its name is this attempt's own.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._file: IO[bytes] | None = None
        self.path = path
        self.counts: dict[Kind, int] = {"unreadable": 0, "unknown": 0, "duplicate": 0}

    def add(self, kind: Kind, at_byte: int, raw: bytes, reason: str) -> None:
        """Write one line."""
        self.counts[kind] += 1
        told: dict[str, Any] = {"byte_offset": at_byte, "reason": reason}
        kept = raw[:MAX_RAW_BYTES]
        try:
            told["raw"] = kept.decode()
        except UnicodeDecodeError:
            told["raw_base64"] = base64.b64encode(kept).decode()
        if self._file is None:
            reached("landing.before_quarantine")
            self._file = cast("IO[bytes]", self._fs.open(self.path, "wb"))
        self._file.write(msgspec.json.encode(told) + b"\n")

    @property
    def is_empty(self) -> bool:
        """True while no line was rejected; then there is no file."""
        return self._file is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        if kind is None:
            self._file.close()
            reached("landing.after_quarantine")
            return
        # The landing failed and nothing names this file: a rest of it is only in the way.
        with contextlib.suppress(OSError):
            self._file.close()
            self._fs.rm_file(self.path)


class NoRejects(Rejects):
    """Counts the lines of a part that land nowhere, and keeps none."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("file"), "")

    def add(self, kind: Kind, at_byte: int, raw: bytes, reason: str) -> None:
        """Count the line alone."""
        del at_byte, raw, reason
        self.counts[kind] += 1
