"""An Iceberg table: its library's catalog and commits, and files that are written here.

The library writes a run out of memory, so the staged file is copied to the table and added to it.
A commit is one change of the catalog, of deleted rows and added files. `merge` rewrites the data
files that hold a key of the run, one by one: memory is that of the largest data file.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from batchrouter.errors import ConfigError, MissingExtraError
from batchrouter.killpoints import reached
from batchrouter.landing.sinks.columns import lake_type
from batchrouter.landing.sinks.files import write_file
from batchrouter.landing.sinks.placed import Adoption, Folder, PlacedFile
from batchrouter.landing.sinks.staged import StagedRows, completed
from batchrouter.landing.sinks.table import (
    JOB,
    RUN_KEY,
    Landing,
    commit_when_first,
    same_keys,
    sql_name,
)
from batchrouter.manifest.arrow import DataType
from batchrouter.manifest.stores import iceberg_properties

_WAIT_S = 0.3
_COPY_BYTES = 1 << 20
_PURCHASE = "batchrouter.purchase"
_RETRIES = "commit.retry.num-retries"
_LEAST_SECRET = 4
_WHOLE_BOUNDS = {f"write.metadata.metrics.column.{name}": "full" for name in (JOB, RUN_KEY)}
"""With bounds that are cut at 16 characters a run's files could not be told from others'."""


class IcebergFormat:
    """A table of an Iceberg catalog; see `Format`.

    Args:
        place: `<catalog>.<namespace>.<table>`, the catalog being one of pyiceberg's configuration.
        storage_options: fsspec's; never shown.

    Raises:
        MissingExtraError: `pyiceberg` is not installed.
        ConfigError: The catalog is none of pyiceberg's configuration.
    """

    def __init__(self, place: str, storage_options: Mapping[str, Any] | None = None) -> None:
        load, self._exceptions = _library()
        catalog, _, name = place.partition(".")
        self.location = f"iceberg:{place}"
        self.errors = (
            OSError,
            ValueError,
            pa.ArrowException,
            *(
                each
                for each in vars(self._exceptions).values()
                if isinstance(each, type) and issubclass(each, Exception)
            ),
        )
        self._name = name
        self._lost = (
            self._exceptions.CommitFailedException,
            self._exceptions.TableAlreadyExistsError,
        )
        self._secrets = [str(each) for each in (storage_options or {}).values()]
        try:
            self._catalog: Any = load(catalog, **iceberg_properties("s3://", storage_options))
        except ValueError as error:
            raise ConfigError(
                f"sink {self.location}: pyiceberg's configuration has no catalog {catalog!r}: set"
                f" PYICEBERG_CATALOG__{catalog.upper()}__URI, or write it in ~/.pyiceberg.yaml"
            ) from error
        self._secrets += [
            str(value)
            for key, value in self._catalog.properties.items()
            if key not in {"type", "warehouse"}
        ]

    def stored(self, kind: DataType) -> DataType:
        """See `Format.stored`."""
        return lake_type(kind)

    def masked(self, text: str) -> str:
        """Take what opens the catalog and the store out of a text."""
        for secret in self._secrets:
            text = text.replace(secret, "***") if len(secret) >= _LEAST_SECRET else text
        return text

    def _open(self) -> Any:
        with contextlib.suppress(
            self._exceptions.NoSuchTableError, self._exceptions.NoSuchNamespaceError
        ):
            return self._catalog.load_table(self._name)
        return None

    def columns(self) -> pa.Schema | None:
        """See `Format.columns`."""
        table = self._open()
        return None if table is None else _columns(table)

    def check_place(self) -> None:
        """Check nothing: a catalog tells at the commit alone what it lets a user do."""

    def succeeded(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Format.succeeded`."""
        table = self._open()
        if table is not None:
            scan = table.scan("_status = 'succeeded'", selected_fields=tuple(columns))
            yield from scan.to_arrow_batch_reader()

    def commit(self, landing: Landing, rows: StagedRows) -> None:
        """Commit, and again on the newer table where another writer was first."""

        def put(table: Any, change: Any) -> list[str]:
            if landing.writing.mode == "merge":
                _rewrite(table, change, landing, rows)
            return [_put(table, rows.path)] if rows.rows else []

        commit_when_first(lambda: self._commit(landing, put), self._lost, wait_s=_WAIT_S)

    def folder(self, landing: Landing) -> Folder | None:
        """See `FileFormat.folder`."""
        table = self._open() or self._created(landing)
        # A file of many rows is seldom of one partition.
        return _Folder(table.io, table.location()) if table.spec().is_unpartitioned() else None

    def adopt(self, landing: Landing, files: Sequence[PlacedFile]) -> Adoption:
        """See `FileFormat.adopt`."""

        def placed(table: Any, change: Any) -> list[str]:
            del table, change
            return [each.path for each in files]

        return commit_when_first(lambda: self._commit(landing, placed), self._lost, wait_s=_WAIT_S)

    def _commit(self, landing: Landing, put: Callable[[Any, Any], list[str]]) -> Adoption:
        table = self._open() or self._created(landing)
        marks = (each.summary for each in table.snapshots())
        is_marked = any(mark and mark.get(_PURCHASE) == landing.marker for mark in marks)
        if landing.is_done(is_marked=is_marked):
            return "known"
        # The library would put its change on the newer table by itself, and ask no one whether
        # that has the purchase already. This is read by this object alone, and not written.
        table.metadata.properties[_RETRIES] = "0"
        change = table.transaction()
        if landing.new_columns:
            with change.update_schema() as schema:
                schema.union_by_name(pa.schema(list(landing.new_columns)))
        self._delete(table, change, landing)
        if paths := put(table, change):
            change.add_files(paths, snapshot_properties=landing.told, check_duplicate_files=False)
        change.set_properties({"comment": landing.comment})
        reached("landing.mid_commit")
        change.commit_transaction()
        return "adopted"

    def _delete(self, table: Any, change: Any, landing: Landing) -> None:
        from pyiceberg import expressions  # noqa: PLC0415 - an extra

        equal: Any = expressions.EqualTo
        who = landing.identity
        match landing.writing.mode:
            case "replace_run":
                gone = equal(JOB, who.job_name) & equal(RUN_KEY, who.run_key)
            case "overwrite":
                gone = expressions.AlwaysTrue()
            case "merge" | "append":
                return
        # Asked to delete what is not there, the library warns.
        if next(iter(table.scan(gone).plan_files()), None) is not None:
            change.delete(gone, snapshot_properties=landing.told)

    def _created(self, landing: Landing) -> Any:
        about = landing.column_comments
        fields = [each.with_metadata({"doc": about[each.name]}) for each in landing.schema]
        self._catalog.create_namespace_if_not_exists(self._name.rpartition(".")[0])
        return self._catalog.create_table(
            self._name,
            pa.schema(fields),
            properties={"comment": landing.comment, **_WHOLE_BOUNDS},
        )


def _rewrite(table: Any, change: Any, landing: Landing, fresh: StagedRows) -> None:
    """Write those data files anew that hold rows which the run replaces, without these rows."""
    from pyiceberg.io.pyarrow import parquet_files_to_data_files  # noqa: PLC0415 - an extra

    if not fresh.rows:
        return
    replaced: list[tuple[Any, str | None]] = []
    with (
        tempfile.TemporaryDirectory(prefix="batchrouter-merge-") as folder,
        _kept_rows(table, landing, fresh) as kept,
    ):
        for task in table.scan().plan_files():
            path = Path(folder, "rows.parquet")
            rows = write_file(path, kept(task), _columns(table))
            if rows != task.file.record_count:
                replaced.append((task.file, _put(table, path) if rows else None))
            path.unlink()
    if not replaced:
        return
    paths = [path for _, path in replaced if path]
    mapping = change.table_metadata.name_mapping()
    if mapping is None:
        # The files that are written here carry names, and no ids of columns.
        change.set_properties({
            "schema.name-mapping.default": table.schema().name_mapping.model_dump_json()
        })
    with change.update_snapshot(snapshot_properties=landing.told).overwrite() as snapshot:
        for file, _ in replaced:
            snapshot.delete_data_file(file)
        for file in parquet_files_to_data_files(table.io, change.table_metadata, iter(paths)):
            snapshot.append_data_file(file)


@contextlib.contextmanager
def _kept_rows(table: Any, landing: Landing, fresh: StagedRows) -> Generator[Any, None, None]:
    """Give a function that yields the rows of a data file whose key the run does not have."""
    import duckdb  # noqa: PLC0415 - an extra
    from pyiceberg.expressions import AlwaysTrue  # noqa: PLC0415
    from pyiceberg.io.pyarrow import ArrowScan  # noqa: PLC0415

    keys = landing.writing.key_columns
    names = ", ".join(sql_name(name) for name in keys)
    schema = _columns(table)
    with duckdb.connect(":memory:", config={"memory_limit": "256MB", "threads": 2}) as connection:
        staged = str(fresh.path)
        connection.execute(
            f"create table fresh as select distinct {names} from read_parquet(?)",  # noqa: S608 - quoted
            [staged],
        )

        def kept(task: Any) -> Iterator[pa.RecordBatch]:
            scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
            batches = (completed(each, list(schema)) for each in scan.to_record_batches([task]))
            connection.register("old", pa.RecordBatchReader.from_batches(schema, batches))
            query = (
                "select * from old where not exists"  # noqa: S608 - quoted
                f" (select 1 from fresh where {same_keys(keys, 'fresh', 'old')})"
            )
            for batch in connection.sql(query).to_arrow_reader(8192):
                yield completed(batch, list(schema))

        yield kept


def _put(table: Any, path: Path) -> str:
    """Copy a file into the table's folder, where no reader sees it before the commit."""
    folder = _Folder(table.io, table.location())
    place = folder.path(uuid.uuid4().hex)
    with path.open("rb") as file, folder.create(place) as put:
        while piece := file.read(_COPY_BYTES):
            put.write(piece)
    return place


@dataclass(frozen=True, slots=True)
class _Folder:
    """Where a table keeps its data files; see `Folder`."""

    io: Any
    location: str

    def path(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/data/batchrouter-{name}.parquet"

    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        return self.io.new_output(path).create()

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        return self.io.new_input(path).open()

    def remove(self, path: str) -> None:
        self.io.delete(path)


def _columns(table: Any) -> pa.Schema:
    given = table.schema().as_arrow()
    return pa.schema([(each.name, lake_type(each.type)) for each in given])


def _library() -> tuple[Any, Any]:
    try:
        from pyiceberg import exceptions  # noqa: PLC0415 - an extra
        from pyiceberg.catalog import load_catalog  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError.for_extra(
            "iceberg", needed_for="an Iceberg table as sink"
        ) from None
    return load_catalog, exceptions
