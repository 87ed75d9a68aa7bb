"""A Delta table, written by its own library.

A commit of Delta is atomic by itself. The purchase is marked in it by an application transaction,
which the library does not compare by itself: this checks it and commits on the same handle, and
begins anew with a fresh one when another writer was first. `replace_run`, `append` and `overwrite`
stream. `merge` holds the keys and rows of one run in memory: docs/sinks.md has the figures.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from batchrouter.errors import MissingExtraError, SinkError
from batchrouter.killpoints import reached
from batchrouter.landing.sinks import delta_files
from batchrouter.landing.sinks.columns import lake_type
from batchrouter.landing.sinks.placed import Adoption, Folder, PlacedFile
from batchrouter.landing.sinks.staged import StagedRows
from batchrouter.landing.sinks.table import Landing, commit_when_first, own_rows, same_keys
from batchrouter.manifest.arrow import DataType
from batchrouter.manifest.stores import delta_options

_WAIT_S = 0.2
_VERSION = 1
_TARGET_FILE_BYTES = 128 << 20
# The writer holds a row group until it is full; its own million rows would be the peak.
_ROW_GROUP_ROWS = 1 << 16


class DeltaFormat:
    """A Delta table; see `Format`.

    Args:
        place: A path or a URL that `deltalake` opens.
        storage_options: fsspec's; never shown.

    Raises:
        MissingExtraError: `deltalake` is not installed.
    """

    def __init__(self, place: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._library = _library()
        errors = self._library.exceptions
        self.location = f"delta:{place}"
        self.errors = (OSError, ValueError, pa.ArrowException, errors.DeltaError)
        self._is_local = "://" not in place
        self._path = os.path.abspath(place) if self._is_local else place  # noqa: PTH100 - kept as text
        self._given = dict(storage_options or {})
        self._options = delta_options(place, storage_options) or None
        self._lost = (errors.CommitFailedError,)

    def stored(self, kind: DataType) -> DataType:
        """See `Format.stored`."""
        return lake_type(kind)

    def masked(self, text: str) -> str:
        """Take the store's credentials out of a text."""
        for secret in (self._options or {}).values():
            text = text.replace(secret, "***") if len(secret) > 3 else text  # noqa: PLR2004 - "true" is none
        return text

    def _open(self) -> Any:
        """Open the newest version; None when there is no table."""
        if self._is_local and not Path(self._path).exists():
            return None
        with contextlib.suppress(self._library.exceptions.TableNotFoundError):
            return self._library.DeltaTable(self._path, storage_options=self._options)
        return None

    def columns(self) -> pa.Schema | None:
        """See `Format.columns`."""
        table = self._open()
        return None if table is None else _columns(table)

    def check_place(self) -> None:
        """See that a local folder can be written."""
        if not self._is_local:
            return
        root = Path(self._path)
        there = next(each for each in (root, *root.parents) if os.path.lexists(each))
        if not there.is_dir():
            raise SinkError(
                f"the table {self.location} must be a folder, and {there} is a file. It is as it"
                " was: name another sink, or move the file away"
            )
        log = root / "_delta_log"
        if there == root and any(root.iterdir()) and not log.is_dir():
            raise SinkError(
                f"the folder {there} holds files and no Delta table. It is as it was: name another"
                " sink, or empty the folder"
            )
        for folder in (there, log):
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                raise SinkError(
                    f"the table {self.location} cannot be written: {folder} is read-only. The table"
                    " is as it was: name another sink, or give leave to write there"
                )

    def succeeded(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Format.succeeded`."""
        table = self._open()
        if table is not None:
            for batch in table.scan(columns=list(columns), predicate="_status = 'succeeded'"):
                yield pa.record_batch(batch)

    def commit(self, landing: Landing, rows: StagedRows) -> None:
        """Commit, and again on a newer version where another writer was first."""
        commit_when_first(lambda: self._commit(landing, rows), self._lost, wait_s=_WAIT_S)

    def _commit(self, landing: Landing, rows: StagedRows) -> None:
        table = self._ready(landing)
        if table is not None:
            reached("landing.mid_commit")
            self._write(table, landing, rows.reader(_columns(table)))

    def _ready(self, landing: Landing) -> Any:
        """Open the newest version, with the columns that it needs; None when all is done."""
        table = self._open() or self._created(landing)
        marked = table.transaction_version(_app(landing)) is not None
        if landing.is_done(is_marked=marked):
            return None
        names = _columns(table).names
        new = [each for each in landing.new_columns if each.name not in names]
        if new:
            table.alter.add_columns(self._library.Schema.from_arrow(pa.schema(new)).fields)
            table = self._open()
        return table

    def _properties(self, landing: Landing, **how: Any) -> Any:
        mark = self._library.Transaction(_app(landing), _VERSION)
        return self._library.CommitProperties(
            custom_metadata=landing.told, app_transactions=[mark], **how
        )

    def folder(self, landing: Landing) -> Folder | None:
        """See `FileFormat.folder`."""
        table = self._open() or self._created(landing)
        if not delta_files.are_taken(table):
            return None
        try:
            fs, root = fsspec.core.url_to_fs(self._path, **self._given)
        except (ImportError, TypeError, ValueError):
            return None  # Delta's library opens stores that fsspec does not, and by other words
        return delta_files.StoreFolder(fs, str(root).rstrip("/"))

    def adopt(self, landing: Landing, files: Sequence[PlacedFile]) -> Adoption:
        """See `FileFormat.adopt`."""
        return commit_when_first(lambda: self._adopt(landing, files), self._lost, wait_s=_WAIT_S)

    def _adopt(self, landing: Landing, files: Sequence[PlacedFile]) -> Adoption:
        table = self._ready(landing)
        if table is None:
            return "known"
        removed = delta_files.replaced(table, landing) if delta_files.are_taken(table) else None
        if removed is None:
            return "refused"
        reached("landing.mid_commit")
        table.create_write_transaction(
            [*removed, *map(delta_files.added, files)],
            mode="append",
            schema=table.schema(),
            # What is replaced was read in this version: the commit is that of the next, or none.
            commit_properties=self._properties(landing, max_commit_retries=0),
        )
        return "adopted"

    def _write(self, table: Any, landing: Landing, reader: pa.RecordBatchReader) -> None:
        mode, properties = landing.writing.mode, self._properties(landing)
        groups = self._library.WriterProperties(max_row_group_size=_ROW_GROUP_ROWS)
        if mode == "merge":
            keys = same_keys(landing.writing.key_columns, "old", "new")
            merger = table.merge(
                reader,
                predicate=keys,
                source_alias="new",
                target_alias="old",
                writer_properties=groups,
                commit_properties=properties,
            )
            merger.when_matched_update_all().when_not_matched_insert_all().execute()
            return
        self._library.write_deltalake(
            table,
            reader,
            mode="append" if mode == "append" else "overwrite",
            predicate=own_rows(landing.identity) if mode == "replace_run" else None,
            commit_properties=properties,
            target_file_size=_TARGET_FILE_BYTES,
            writer_properties=groups,
        )

    def _created(self, landing: Landing) -> Any:
        """Make an empty table; of two that do, the second finds that of the first."""
        self._library.DeltaTable.create(
            self._path,
            pa.schema([
                each.with_metadata({"comment": landing.column_comments[each.name]})
                for each in landing.schema
            ]),
            mode="ignore",
            name=landing.identity.job_name,
            description=landing.comment,
            storage_options=self._options,
        )
        return self._open()


def _app(landing: Landing) -> str:
    return f"batchrouter-{landing.marker}"


def _columns(table: Any) -> pa.Schema:
    given = pa.schema(table.schema().to_arrow())
    return pa.schema([(each.name, lake_type(each.type)) for each in given])


def _library() -> Any:
    try:
        import deltalake  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise MissingExtraError.for_extra("delta", needed_for="a Delta table as sink") from None
    return deltalake
