"""The files of a build: manifests cut exactly at the limits, each with its row snapshot.

Every file is one sequential stream on any fsspec file system, closed before the build returns;
a build that fails removes what it wrote.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter import killpoints
from batchrouter.job.job import Parts
from batchrouter.manifest.arrow import pq
from batchrouter.manifest.built import BuiltPart, tokens_estimate
from batchrouter.manifest.packing import SUFFIX, PackedWriter
from batchrouter.manifest.storing import storing

MAX_ITEMS = 10_000_000
MAX_BYTES = 5 * 2**30
"""The router's limits of a manifest (contract section 2)."""

REPEATED_ROWS = "batchrouter.repeated_rows"
"""In a snapshot's metadata: how many of its rows take the answer of another one, if any."""

_ROW_GROUP_BYTES = 12 << 20
_ROW_GROUP_ROWS = 128 * 1024
_TEXT_COLUMNS_WITHOUT_REPEATS = {"_row", "_line", "_item_id", "_request_hash"}


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Where a part ends: before the line that would pass either limit."""

    max_items: int = MAX_ITEMS
    max_bytes: int = MAX_BYTES

    @classmethod
    def of(cls, parts: Parts | None) -> Self:
        """Take a job's own limits, or the router's where they are lower."""
        return cls(
            max_items=min(MAX_ITEMS, (parts and parts.max_items) or MAX_ITEMS),
            max_bytes=min(MAX_BYTES, (parts and parts.max_bytes) or MAX_BYTES),
        )


class PartFiles:
    """The open part and those that are closed."""

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        folders: tuple[str, str],
        token: str,
        schema: pa.Schema,
        limits: PartLimits,
        *,
        is_packed: bool = False,
    ) -> None:
        self._fs = fs
        self._suffix = f".jsonl{SUFFIX}" if is_packed else ".jsonl"
        self._folders = folders
        self._token = token
        self._schema = schema
        self._limits = limits
        self._written: list[str] = []
        self.closed: list[BuiltPart] = []
        self.open_part = self._start()

    def _start(self) -> "_OpenPart":
        index = len(self.closed)
        name = f"{self._token}-part-{index:05d}"
        manifest_dir, rows_dir = self._folders
        paths = (f"{manifest_dir}/{name}{self._suffix}", f"{rows_dir}/{name}.parquet")
        killpoints.reached("manifest.before_part")
        self._written += paths
        part = _OpenPart(self._fs, index, paths, self._schema)
        killpoints.reached("manifest.after_part")
        return part

    def fitting(self, ends: npt.NDArray[np.int64], start_byte: int) -> int:
        """Tell how many of the lines that end at `ends` still fit into the open part."""
        room = self._limits.max_bytes - self.open_part.size + start_byte
        by_bytes = int(np.searchsorted(ends, room, side="right"))
        return min(by_bytes, self._limits.max_items - self.open_part.item_count)

    def next(self) -> None:
        """Close the open part and start another."""
        self.close()
        self.open_part = self._start()

    def close(self) -> None:
        """Close the open part; its files are whole then."""
        killpoints.reached("manifest.before_close")
        self.closed.append(self.open_part.close())
        killpoints.reached("manifest.after_close")

    def discard(self) -> None:
        """Close what is open and remove every file of this build."""
        self.open_part.abandon()
        for path in self._written:
            with contextlib.suppress(OSError):
                self._fs.rm_file(path)

    def rows_again(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of the snapshots of all closed parts."""
        for part in self.closed:
            path = f"{self._folders[1]}/{part.rows_path}"
            with self._fs.open(path, "rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                yield from file.iter_batches(16 * 1024, columns=columns, use_threads=False)


class _OpenPart:
    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        index: int,
        paths: tuple[str, str],
        schema: pa.Schema,
    ) -> None:
        self._index = index
        self._manifest_path, self._rows_path = paths
        self._hash = hashlib.sha256()
        self.size = 0
        self.item_count = 0
        self._row_count = 0
        self._skipped_count = 0
        with storing(self._manifest_path):
            file = fs.open(self._manifest_path, "wb")
        self._manifest: Any = PackedWriter(file) if self._manifest_path.endswith(SUFFIX) else file
        try:
            self._rows = _SnapshotFile(fs, self._rows_path, schema)
        except BaseException:
            self._manifest.close()
            raise

    def write_lines(self, lines: memoryview, count: int) -> None:
        """Append whole lines."""
        with storing(self._manifest_path):
            self._manifest.write(lines)
        self._hash.update(lines)
        self.size += len(lines)
        self.item_count += count

    def write_rows(self, rows: pa.RecordBatch) -> None:
        """Append rows to the snapshot."""
        self._row_count += len(rows)
        self._skipped_count += len(rows) - rows.column("_skip_reason").null_count
        with storing(self._rows_path):
            self._rows.write(rows)

    def close(self) -> BuiltPart:
        """Finish both files and say what they are."""
        with storing(self._manifest_path):
            self._manifest.close()
        repeated_count = self._row_count - self._skipped_count - self.item_count
        with storing(self._rows_path):
            self._rows.close(repeated_count)
        return BuiltPart(
            index=self._index,
            manifest_path=self._manifest_path.rsplit("/", 1)[-1],
            rows_path=self._rows_path.rsplit("/", 1)[-1],
            item_count=self.item_count,
            row_count=self._row_count,
            skipped_count=self._skipped_count,
            repeated_count=repeated_count,
            bytes=self.size,
            sha256=self._hash.hexdigest(),
            input_tokens_estimate=tokens_estimate(self.size, self.item_count),
        )

    def abandon(self) -> None:
        """Let go of both files; they hold nothing of use."""
        for end in (getattr(self._manifest, "discard", None), self._manifest.close):
            with contextlib.suppress(Exception):
                if end is not None:
                    end()
        self._rows.abandon()


class _SnapshotFile:
    """A Parquet file that is written in row groups of about 16 MiB."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, schema: pa.Schema) -> None:
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0
        repeating = [name for name in schema.names if name not in _TEXT_COLUMNS_WITHOUT_REPEATS]
        with storing(path):
            self._file: Any = fs.open(path, "wb")
            self._writer = pq.ParquetWriter(
                self._file,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=repeating,
                write_statistics=False,
            )

    def write(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes >= _ROW_GROUP_BYTES or self._waiting_rows >= _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=max(1, self._waiting_rows))
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

    def close(self, repeated_count: int) -> None:
        self._flush()
        if repeated_count:
            self._writer.add_key_value_metadata({REPEATED_ROWS: str(repeated_count)})
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Let go of the file; it holds nothing of use."""
        self._waiting = []
        for end in (self._writer.close, getattr(self._file, "discard", None), self._file.close):
            with contextlib.suppress(Exception):
                if end is not None:
                    end()
