"""Rows that many processes put among a table's files, before the table hears of them.

A table that is a list of files takes files that others have written: each process writes its rows
where the table keeps its own, and one commit names all of them. No reader looks at a file that no
commit names, so what a dead process left is litter, which the table's own clean-up removes
(`VACUUM` of Delta, `remove_orphan_files` of Iceberg).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol, runtime_checkable

import pyarrow as pa

from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import Commit
from batchrouter.landing.sinks.columns import stored_batch
from batchrouter.landing.sinks.files import write_file
from batchrouter.manifest.arrow import pq

Adoption = Literal["adopted", "known", "refused"]
"""The files are the table's now; it has the purchase already; only rows will do, not files."""

_READ_ROWS = 8192
_LONGEST_BOUND = 32
"""Characters; Delta's own writers cut longer texts."""


class Folder(Protocol):
    """Where a table keeps its files; it can be pickled, and what it opens with goes along."""

    def path(self, name: str) -> str:
        """Say how the table calls a file of this name."""
        ...

    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a new file."""
        ...

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to read it; it can be sought."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file."""
        ...


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A whole Parquet file that no commit names yet.

    Attributes:
        path: As the table calls it.
        bytes: Its size.
        rows: How many.
        bounds: Of columns of whole numbers or short texts, the least value, the greatest one and
            how many are NULL; all of it JSON.
    """

    path: str
    bytes: int
    rows: int
    bounds: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Intake:
    """Where the files of one landing go, and which columns they have."""

    folder: Folder = field(repr=False)
    schema: pa.Schema
    constants: Mapping[str, str]
    location: str

    def place(self, name: str, batches: Iterator[pa.RecordBatch]) -> PlacedFile:
        """Write a file; nothing is left of it when that fails.

        Args:
            name: A name that no other attempt takes.
            batches: Landed rows.

        Raises:
            SinkError: A value does not go into the table's type.
            OSError: No room, or no permission; what `batches` raises goes through, too.
        """
        path = self.folder.path(name)
        footers: list[Any] = []
        rows = (stored_batch(each, self.schema, self.constants, self.location) for each in batches)
        try:
            with self.folder.create(path) as file:
                written = write_file(file, rows, self.schema, footers)
                size_bytes = file.tell()
        except BaseException:
            self._remove(path)
            raise
        return PlacedFile(path, size_bytes, written, _bounds(footers[0]))

    def read(self, files: Sequence[PlacedFile]) -> Iterator[pa.RecordBatch]:
        """Read the rows again, in the order of the files."""
        for each in files:
            with self.folder.open(each.path) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                yield from file.iter_batches(_READ_ROWS, use_threads=False)

    def remove(self, files: Sequence[PlacedFile]) -> None:
        """Remove files that no commit names; never fails, since litter is harmless."""
        for each in files:
            self._remove(each.path)

    def _remove(self, path: str) -> None:
        with suppress(Exception):
            self.folder.remove(path)


@runtime_checkable
class TakesFiles(Protocol):
    """A sink whose rows other processes may place; see `Sink`, which it is, too."""

    def intake(self, schema: pa.Schema, identity: LandingIdentity) -> Intake | None:
        """Say where files go; None where only `write` will do. A new table is made, empty.

        Raises:
            SinkError: The table has other columns, or cannot be read or made.
        """
        ...

    def commit_files(
        self,
        files: Sequence[PlacedFile],
        intake: Intake,
        schema: pa.Schema,
        identity: LandingIdentity,
    ) -> Commit:
        """Commit placed files as `write` does rows: all or none, and once a purchase.

        Files that are not the table's afterwards are removed; after an error they stay, since a
        commit whose answer was lost may name them.

        Raises:
            SinkError: The table refuses; it is as it was.
        """
        ...


def _bounds(footer: Any) -> dict[str, list[Any]]:
    """Take the bounds out of a file's footer, of every column that has them in all row groups."""
    found: dict[str, list[Any]] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            found.setdefault(column.path_in_schema, []).append(column.statistics)
    bounds: dict[str, list[Any]] = {}
    for name, told in found.items():
        if not all(each is not None and each.has_min_max and each.has_null_count for each in told):
            continue
        least, greatest = min(each.min for each in told), max(each.max for each in told)
        if _is_told(least) and _is_told(greatest):
            bounds[name] = [least, greatest, sum(each.null_count for each in told)]
    return bounds


def _is_told(bound: Any) -> bool:
    return type(bound) is int or (isinstance(bound, str) and len(bound) <= _LONGEST_BOUND)
