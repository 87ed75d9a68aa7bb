"""A Delta table at one version, read by its own library: deleted rows stay deleted.

The version is fixed when the table is opened, and `version` tells it, so that whoever goes on
with a build reads the same rows. The order of the rows is the library's, not that of the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa

from batchrouter.errors import MissingExtraError, SourceError
from batchrouter.manifest.rendering import plain, plain_type
from batchrouter.manifest.sources.table import sliced
from batchrouter.manifest.stores import delta_options

PREFIX = "delta:"


class DeltaSource:
    """One version of a Delta table.

    Args:
        location: `delta:<path or URL>`, with `?version=12` for a version that is not the newest.
        version: The version to read, as `version` told it before; it wins.
        storage_options: fsspec's; never shown.

    Raises:
        MissingExtraError: `deltalake` is not installed.
        SourceError: No such table or version, or it cannot be read.
    """

    def __init__(
        self,
        location: str,
        *,
        version: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        path, _, query = location.removeprefix(PREFIX).partition("?")
        self._path = path
        asked = version or _version_in(query, location)
        library = _library()
        self._errors: tuple[type[Exception], ...] = (
            OSError, ValueError, pa.ArrowException, library.exceptions.DeltaError,
        )  # fmt: skip
        try:
            self._table: Any = library.DeltaTable(
                path,
                version=None if asked is None else int(asked),
                storage_options=delta_options(path, storage_options) or None,
            )
            given = pa.schema(self._table.schema().to_arrow())
        except self._errors as error:
            raise self._unreadable(error) from None
        self.version: str | None = str(self._table.version())
        self.schema = pa.schema([(each.name, plain_type(each.type)) for each in given])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of this version; see `Source.batches`."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        try:
            for each in self._table.scan(columns=list(columns)):
                batch = pa.record_batch(each)
                arrays = [plain(batch.column(field.name)).cast(field.type) for field in schema]
                yield from sliced(pa.RecordBatch.from_arrays(arrays, schema=schema))
        except self._errors as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> SourceError:
        told = (str(error) or type(error).__name__).splitlines()[0][:300]
        return SourceError(f"source: the Delta table {self._path} cannot be read: {told}")


def _library() -> Any:
    try:
        import deltalake  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise MissingExtraError.for_extra("delta", needed_for="reading a Delta table") from None
    return deltalake


def _version_in(query: str, location: str) -> str | None:
    asked = parse_qs(query)
    version = asked.pop("version", [None])[0]
    if asked or (version is not None and not (version.isascii() and version.isdigit())):
        raise SourceError(f"source: {location}: only ?version=<number> may follow a Delta table")
    return version
