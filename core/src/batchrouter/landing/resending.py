"""Which items are to be sent again, and a manifest of their own for them.

The rows are judged as a landing judges them, so what would land as failed is what is sent again.
The lines are those of the manifest that was sent, to the byte; nothing is rendered anew.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchrouter.errors import (
    DamagedManifestError,
    LandingError,
    ManifestError,
    StorageError,
)
from batchrouter.killpoints import reached
from batchrouter.landing.judged import JobToLand, JudgedRows
from batchrouter.landing.lines import read_blocks
from batchrouter.landing.rejects import NoRejects, Rejects
from batchrouter.landing.report import PartToLand
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.packing import open_manifest
from batchrouter.manifest.parts import PartFiles, PartLimits
from batchrouter.manifest.process import prepare_process

_PIECE_BYTES = 4 << 20
_NO_ANSWER = (PartToLand(0, "", 0), None)
"""What rows that repeat another one's request are told: they are never sent themselves."""

FAILED = frozenset({"failed", "missing"})
INVALID = frozenset({"invalid_output"})


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part as it was sent.

    Attributes:
        part: Its rows and what came back.
        manifest_path: Its manifest on the run's filesystem.
        sha256: Of the manifest, hex.
    """

    part: PartToLand
    manifest_path: str
    sha256: str


def build_round(
    job: JobToLand,
    *,
    fs: fsspec.AbstractFileSystem,
    sent: Sequence[SentPart],
    resent: Sequence[Sequence[PartToLand]] = (),
    statuses: frozenset[str],
    folders: tuple[str, str],
    token: str,
    limits: PartLimits,
    is_packed: bool = False,
    max_output_tokens: int | None,
    on_progress: Callable[[int], None] | None = None,
) -> BuiltManifest | None:
    """Write the manifest and the row snapshot of the items to be sent again, in flat memory.

    Args:
        job: What was asked.
        fs: The filesystem of the run folder.
        sent: The parts whose items are looked at.
        resent: Later rounds that have sent some of them already.
        statuses: Of the rows to be sent again.
        folders: Existing folders of manifests and of snapshots.
        token: Starts the files' names.
        limits: Of the new parts.
        is_packed: True packs the new manifests.
        max_output_tokens: The output cap of the items, None without one.
        on_progress: Told the rows done so far.

    Returns:
        None when no item is to be sent again; then no file is left.

    Raises:
        DamagedManifestError: The lines cannot be copied.
        ManifestError: A line is longer than `limits` allow.
        LandingError: A snapshot is not the promised one.
        StorageError: The run folder cannot be read or written.

        After each of them no file is left.
    """
    if not sent:
        return None
    started_s = time.monotonic()
    prepare_process()
    rows = JudgedRows(
        job,
        fs,
        [[each.part for each in sent], *resent],
        run_key="",
        reads_output=bool(statuses & INVALID),
    )
    reached("round.before_build")
    files = PartFiles(fs, folders, token, rows.snapshot_schema, limits, is_packed=is_packed)
    try:
        with _reading():
            _copy_chosen(rows, _Manifests(fs, sent), statuses, files, on_progress)
        files.close()
    except BaseException:
        files.discard()
        raise
    parts = tuple(files.closed)
    item_count = sum(part.item_count for part in parts)
    if not item_count:
        files.discard()
        return None
    reached("round.after_build")
    return BuiltManifest(
        parts=parts,
        row_count=item_count,
        item_count=item_count,
        skipped_count=0,
        max_output_tokens=max_output_tokens,
        duration_s=round(time.monotonic() - started_s, 3),
    )


@contextmanager
def _reading() -> Generator[None]:
    """Tell what goes wrong while reading the run folder."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the run folder cannot be read: {error}") from error
    except pa.ArrowException as error:
        raise LandingError(f"the run's rows cannot be read: {error}") from error


def _copy_chosen(
    rows: JudgedRows,
    manifests: "_Manifests",
    statuses: frozenset[str],
    files: PartFiles,
    tell: Callable[[int], None] | None,
) -> None:
    wanted = pa.array(sorted(statuses))
    done = 0
    with closing(manifests), closing(rows.batches(_Unkept(), repeat(_NO_ANSWER))) as judged:
        for some, batch in judged:
            is_sent = pc.is_valid(some.column("_line"))
            chosen = some.filter(pc.and_(is_sent, pc.is_in(batch.column("_status"), wanted)))
            if len(chosen):
                numbers = cast("list[int]", chosen.column("_line").to_pylist())
                _copy(chosen, manifests.lines(done, numbers), files)
            done += len(some)
            if tell:
                tell(done)
        manifests.finish()


def _copy(chosen: pa.RecordBatch, lines: Iterator[bytes], files: PartFiles) -> None:
    """Write rows and their lines, a bounded piece at a time."""
    begin = size = 0
    held: list[bytes] = []
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            _write(chosen.slice(begin, len(held)), held, files)
            begin, size, held = begin + len(held), 0, []
    if held:
        _write(chosen.slice(begin), held, files)


def _write(chosen: pa.RecordBatch, lines: list[bytes], files: PartFiles) -> None:
    data, ends = memoryview(b"".join(lines)), np.cumsum([len(line) for line in lines])
    at, start_byte = 0, 0
    while at < len(lines):
        part = files.open_part
        count = files.fitting(ends[at:], start_byte)
        if count:
            end_byte = int(ends[at + count - 1])
            part.write_rows(_numbered(chosen.slice(at, count), part.item_count))
            part.write_lines(data[start_byte:end_byte], count)
            at, start_byte = at + count, end_byte
        elif part.item_count:
            files.next()
        else:
            raise ManifestError(
                f"a line of {len(lines[at])} bytes is to be sent again, which no part can hold:"
                " raise parts.max_bytes"
            )


def _numbered(rows: pa.RecordBatch, first_line: int) -> pa.RecordBatch:
    lines = pa.array(np.arange(first_line, first_line + len(rows)))
    columns = [lines if field.name == "_line" else rows.column(field.name) for field in rows.schema]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


class _Manifests:
    """The lines of the parts that were sent, asked for in order; checked as they are left."""

    def __init__(self, fs: fsspec.AbstractFileSystem, sent: Sequence[SentPart]) -> None:
        self._fs = fs
        self._sent = sorted(sent, key=lambda each: each.part.index)
        self._ends = np.cumsum([each.part.row_count for each in self._sent])
        self._at = -1
        self._open: _Manifest | None = None

    def lines(self, first_row: int, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield lines of the part that the row is of, by their numbers in it."""
        at = int(np.searchsorted(self._ends, first_row, side="right"))
        if self._open is None or at != self._at:
            self.finish()
            self._at, self._open = at, _Manifest(self._fs, self._sent[at])
        yield from map(self._open.line, numbers)

    def finish(self) -> None:
        """See that the part of which lines were copied is what was built.

        Raises:
            DamagedManifestError: It is not.
        """
        if self._open is not None:
            self._open.finish()

    def close(self) -> None:
        """Let go of the file."""
        if self._open is not None:
            self._open.close()


class _Manifest:
    def __init__(self, fs: fsspec.AbstractFileSystem, sent: SentPart) -> None:
        self._sent = sent
        try:
            self._file = open_manifest(fs, sent.manifest_path)
        except FileNotFoundError:
            raise self._damaged("is gone") from None
        self._blocks = read_blocks(self._file)
        self._hash = hashlib.sha256()
        self._first = self._end = 0
        self._block = b""
        self._lines: list[bytes] | None = None

    def line(self, number: int) -> bytes:
        while number >= self._end:
            if not self._load():
                raise self._damaged("is cut short")
        if self._lines is None:
            self._lines = self._block.split(b"\n")
        return self._lines[number - self._first] + b"\n"

    def _load(self) -> bool:
        try:
            found = next(self._blocks, None)
        except OSError as error:
            if error.errno is None:
                raise self._damaged("is damaged") from error
            raise
        if found is None:
            return False
        self._block, self._lines = found[1], None
        self._hash.update(self._block)
        self._hash.update(b"\n")
        self._first, self._end = self._end, self._end + self._block.count(b"\n") + 1
        return True

    def finish(self) -> None:
        while self._load():
            pass
        self.close()
        if self._hash.hexdigest() != self._sent.sha256:
            raise self._damaged("is damaged")

    def close(self) -> None:
        self._file.close()

    def _damaged(self, told: str) -> DamagedManifestError:
        return DamagedManifestError(
            f"the manifest of part {self._sent.part.index} in the run folder {told}, so nothing of"
            " it can be sent again"
        )


class _Unkept:
    """Takes the lines that land nowhere, and leaves them to the landing."""

    def rejects_of(self, resend_round: int, part: PartToLand) -> Rejects:
        del resend_round, part
        return NoRejects()

    def end_part(self, resend_round: int, part: PartToLand, rejects: Rejects) -> None:
        del resend_round, part, rejects
