"""An Iceberg table at one snapshot, read file by file by its own library.

The snapshot is fixed when the table is opened, and `version` tells it. The library reads a data
file whole, with the deletes that belong to it: memory is that of the largest data file.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchrouter.errors import MissingExtraError, SourceError
from batchrouter.manifest.rendering import plain, plain_type
from batchrouter.manifest.sources.table import sliced
from batchrouter.manifest.stores import iceberg_properties

PREFIX = "iceberg:"
_METADATA = ".metadata.json"


class IcebergSource:
    """One snapshot of an Iceberg table.

    Args:
        location: `iceberg:<catalog>.<namespace>.<table>`, the catalog being one of pyiceberg's
            configuration, or `iceberg:<path or URL of a metadata file>`.
        version: The snapshot to read, as `version` told it before.
        storage_options: fsspec's; never shown.

    Raises:
        MissingExtraError: `pyiceberg` is not installed.
        SourceError: No such catalog, table or snapshot, or it cannot be read.
    """

    def __init__(
        self,
        location: str,
        *,
        version: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = location.removeprefix(PREFIX)
        try:
            self._table = _opened(self._name, storage_options)
            snapshot = self._table.current_snapshot()
            if version is not None:
                snapshot = self._table.snapshot_by_id(int(version))
                if snapshot is None:
                    raise SourceError(
                        f"source: the Iceberg table {self._name} has no snapshot {version} any"
                        " more, which this run began with; use another run key to read it anew"
                    )
            # A table that was never written to has no snapshot.
            self._snapshot_id: int | None = snapshot.snapshot_id if snapshot else None
            given = self._scan(()).projection().as_arrow()
        except _errors() as error:
            raise self._unreadable(error) from None
        self.version: str | None = None if snapshot is None else str(snapshot.snapshot_id)
        self.schema = pa.schema([(each.name, _narrowed(each.type)) for each in given])

    def _scan(self, columns: Sequence[str]) -> Any:
        return self._table.scan(
            selected_fields=tuple(columns) or ("*",), snapshot_id=self._snapshot_id
        )

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of this snapshot; see `Source.batches`."""
        from pyiceberg.expressions import AlwaysTrue  # noqa: PLC0415 - an extra
        from pyiceberg.io.pyarrow import ArrowScan  # noqa: PLC0415

        schema = pa.schema([self.schema.field(name) for name in columns])
        table = self._table
        try:
            scan = self._scan(columns)
            projection = scan.projection()
            for task in sorted(scan.plan_files(), key=lambda task: str(task.file.file_path)):
                # One task at a time: given all, the library reads several files at once.
                reader = ArrowScan(table.metadata, table.io, projection, AlwaysTrue())
                for batch in reader.to_record_batches([task]):
                    arrays = [plain(batch.column(each.name)).cast(each.type) for each in schema]
                    yield from sliced(pa.RecordBatch.from_arrays(arrays, schema=schema))
        except _errors() as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> SourceError:
        told = (str(error) or type(error).__name__).splitlines()[0][:300]
        return SourceError(f"source: the Iceberg table {self._name} cannot be read: {told}")


def _opened(name: str, storage_options: Mapping[str, Any] | None) -> Any:
    try:
        from pyiceberg.catalog import load_catalog  # noqa: PLC0415 - an extra
        from pyiceberg.table import StaticTable  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError.for_extra(
            "iceberg", needed_for="reading an Iceberg table"
        ) from None
    if name.endswith(_METADATA):
        return StaticTable.from_metadata(name, iceberg_properties(name, storage_options))
    catalog, _, table = name.partition(".")
    if "/" in name or "." not in table:
        raise SourceError(
            f"source: {PREFIX}{name} names no Iceberg table: write"
            f" {PREFIX}<catalog>.<namespace>.<table>, with the catalog in pyiceberg's"
            f" configuration, or {PREFIX}<path of its newest {_METADATA}>"
        )
    return load_catalog(catalog, **iceberg_properties("s3://", storage_options)).load_table(table)


def _errors() -> tuple[type[Exception], ...]:
    from pyiceberg import exceptions  # noqa: PLC0415 - an extra

    own = tuple(
        each
        for each in vars(exceptions).values()
        if isinstance(each, type) and issubclass(each, Exception)
    )
    return (*own, OSError, ValueError, pa.ArrowException)


def _narrowed(kind: Any) -> Any:
    """Give the plain type; a file may hold its large twin, which is the same to a reader."""
    kind = plain_type(kind)
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.binary() if pa.types.is_large_binary(kind) else kind
