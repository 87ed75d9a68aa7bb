"""An object of this process that is a table: polars, pandas, DuckDB, pyarrow."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from batchrouter.errors import SourceError
from batchrouter.manifest.listing import reading
from batchrouter.manifest.sources.table import sliced


class MemorySource:
    """An object of this process; what cannot be read twice is read once only."""

    version = None

    _begun: ClassVar["weakref.WeakSet[pa.RecordBatchReader]"] = weakref.WeakSet()

    def __init__(self, table: Any) -> None:
        self._table: Any = (
            pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        )
        self._stream: pa.RecordBatchReader | None = None
        schema = getattr(table, "schema", None)
        if not isinstance(schema, pa.Schema):
            self._stream = self._opened()
            schema = self._stream.schema
        self.schema: pa.Schema = schema

    def _opened(self) -> pa.RecordBatchReader:
        if hasattr(self._table, "__arrow_c_stream__"):
            with reading("the table in memory"):
                return pa.RecordBatchReader.from_stream(self._table)
        with reading("the table in memory"):
            return pa.Table.from_batches([pa.record_batch(self._table)]).to_reader()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `Source.batches`."""
        if isinstance(self._table, pa.RecordBatchReader):
            if self._table in self._begun:
                raise SourceError(
                    "source: the record batch reader was read before and is used up;"
                    " give a table or a path to build again"
                )
            self._begun.add(self._table)
        stream, self._stream = self._stream or self._opened(), None
        with reading("the table in memory"):
            for batch in stream:
                yield from sliced(batch.select(list(columns)))
