"""The rows of a build that the table holds already: found, counted, and their keys kept.

They get no line and stand in no snapshot. Their keys wait on disk all the same: a key that stands
in two rows is refused and named, whether or not the table holds it.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from batchrouter.manifest.bought import BoughtRows, note_bought
from batchrouter.manifest.snapshot import SnapshotRows
from batchrouter.manifest.storing import storing

_ROW = "_row"


class UnchangedRows:
    """A context manager, whose temporary folder goes at the end.

    Args:
        bought: What the table holds as succeeded; None when it is not asked.
        names: The key's columns.
        schema: The snapshot's columns.
    """

    def __init__(
        self, bought: Iterable[pa.RecordBatch] | None, names: Sequence[str], schema: pa.Schema
    ) -> None:
        self._given = bought
        self._names = [_ROW, *names]
        self._schema = schema
        self._stack = ExitStack()
        self._keys: Any = None
        self._path = Path()
        self.count = 0
        self.bought: BoughtRows | None = None
        """Tells which rows they are; None when the table is not asked."""

    def __enter__(self) -> Self:
        if self._given is None:
            return self
        with storing(tempfile.gettempdir()):
            folder = self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="batchrouter-unchanged-")
            )
        with self._stack:
            fields = [self._schema.field(name) for name in self._names]
            self._path = Path(folder, "keys.arrows")
            self.bought = note_bought(self._given, Path(folder, "bought"), fields[1:])
            with storing(folder):
                file = self._stack.enter_context(pa.OSFile(str(self._path), "wb"))
                self._keys = pa.ipc.new_stream(file, pa.schema(fields))
            self._stack = self._stack.pop_all()
        return self

    def add(self, snapshot: SnapshotRows) -> None:
        """Note the unchanged rows of a batch.

        Raises:
            StorageError: The temporary folder takes no more.
        """
        if snapshot.is_unchanged.any():
            rows = snapshot.unchanged(self._names)
            self.count += len(rows)
            with storing(str(self._path)):
                self._keys.write_batch(rows)

    def keys(self) -> Iterator[pa.RecordBatch]:
        """Read `_row` and the key of every row that was noted; nothing is noted after."""
        if not self.count:
            return
        with storing(str(self._path)):
            self._keys.close()
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_stream(file) as stream:
            yield from stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
