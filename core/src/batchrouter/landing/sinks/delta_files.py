"""Files of a Delta table as its log names them: which may be added, and which a run replaces."""

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from batchrouter.landing.sinks.placed import PlacedFile
from batchrouter.landing.sinks.table import JOB, RUN_KEY, Landing

_PLAIN_FEATURES = frozenset({"appendOnly", "timestampNtz", "v2Checkpoint"})
"""What a table may ask of a writer, and a file of the right columns fulfils."""

_LAST_PLAIN_VERSION = 2


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """The table's folder by fsspec; see `Folder`."""

    fs: fsspec.AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        """Give the path within the table, as its log has it."""
        return f"batchrouter-{name}.parquet"

    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a new file."""
        return cast("Any", self.fs.open(f"{self.root}/{path}", "wb"))

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to read it."""
        return cast("Any", self.fs.open(f"{self.root}/{path}", "rb"))

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.fs.rm_file(f"{self.root}/{path}")


def are_taken(table: Any) -> bool:
    """Tell whether a file needs nothing but the right columns to be one of the table's.

    Partitions, constraints, generated columns, mapped names, change data and deletion vectors ask
    for more, which Delta's own writer knows.
    """
    protocol, metadata = table.protocol(), table.metadata()
    features = set(protocol.writer_features or ())
    is_plain = protocol.min_writer_version <= _LAST_PLAIN_VERSION or bool(features)
    rules = any(name.startswith("delta.constraints.") for name in metadata.configuration)
    asks = any(field.metadata.get("delta.invariants") for field in table.schema().fields)
    return (
        is_plain
        and features <= _PLAIN_FEATURES
        and not (metadata.partition_columns or rules or asks)
    )


def added(file: PlacedFile) -> Any:
    """Write a placed file as an action of the log."""
    from deltalake.transaction import AddAction  # noqa: PLC0415 - an extra

    bounds = file.bounds.items()
    stats = {
        "numRecords": file.rows,
        "minValues": {name: least for name, (least, _, _) in bounds},
        "maxValues": {name: greatest for name, (_, greatest, _) in bounds},
        "nullCount": {name: nulls for name, (_, _, nulls) in bounds},
    }
    return AddAction(
        path=file.path,
        size=file.bytes,
        partition_values={},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps(stats, ensure_ascii=False),
    )


def replaced(table: Any, landing: Landing) -> list[Any] | None:
    """Give the actions that remove what a landing replaces.

    Returns:
        None where a file holds, or may hold, rows of the run beside others: then rows must be
        deleted, not files.
    """
    from deltalake.transaction import RemoveAction  # noqa: PLC0415 - an extra

    mode = landing.writing.mode
    if mode == "append":
        return []
    now_ms = int(time.time() * 1000)
    gone: list[Any] = []
    who = {JOB: landing.identity.job_name, RUN_KEY: landing.identity.run_key}
    for file in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        own = [_holds(file, name, value) for name, value in who.items()]
        if mode == "replace_run" and False in own:
            continue
        if mode == "replace_run" and None in own:
            return None
        gone.append(
            RemoveAction(
                path=file["path"],
                data_change=True,
                deletion_timestamp=now_ms,
                size=file["size_bytes"],
                partition_values={},
            )
        )
    return gone


def _holds(file: dict[str, Any], name: str, value: str) -> bool | None:
    """Tell by a file's bounds whether all its rows have a value, or none; None if it is unsure.

    A bound that was cut is not above the least value, nor below the greatest one.
    """
    low, high = file.get(f"min.{name}"), file.get(f"max.{name}")
    if low is None or high is None:
        return None
    if not low <= value <= high:
        return False
    return True if low == value == high else None
