"""What a table holds as succeeded, by key and request: rows that need not be bought again.

Of each such row 16 bytes are kept, a hash of its key and of its `_request_hash`, sorted in one file
on disk. Up to four million are held in memory; of more, the first of each 64 is held, and the rest
is read where it is asked for. So memory is flat, and any number of processes may ask.

A `_request_hash` begins with the version of its hash. A row of the source is hashed by each version
that the table holds, so that a new version of the hash buys nothing again.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from batchrouter.errors import SinkError
from batchrouter.manifest.arrow import Array, pc, py_buffer
from batchrouter.manifest.files import NumberedFiles
from batchrouter.manifest.keys import HASH_VERSION, codes, digests_of, typed_keys
from batchrouter.manifest.rendering import plain
from batchrouter.manifest.storing import storing

REQUEST_HASH = "_request_hash"

REQUEST_DIGESTS: dict[int, Callable[[bytes], bytes]] = {HASH_VERSION: xxhash.xxh3_128_digest}
"""How each version hashes a request; golden files pin the values."""

_HELD_ROWS = 4_000_000
_STEP = 64
_PARTS = 64
_DIGEST_BYTES = 16


def note_bought(
    rows: Iterable[pa.RecordBatch], path: Path, keys: Sequence["pa.Field[Any]"]
) -> "BoughtRows":
    """Write the file of what a table holds.

    Args:
        rows: The key's columns and `_request_hash` of the rows that succeeded.
        path: The file to write, in a folder of its own on the local disk.
        keys: The key's columns with the source's types.

    Raises:
        SinkError: A key column of the table has another type; or a request's hash is of a version
            that this release does not know.
        StorageError: The folder takes no more.
    """
    parted = NumberedFiles(path.parent, "bought", np.dtype((np.uint64, 2)))
    versions: set[int] = set()
    for batch in rows:
        known = batch.filter(pc.is_valid(batch.column(REQUEST_HASH)))
        hashes: Array = known.column(REQUEST_HASH).cast(pa.string())
        versions |= _versions(hashes)
        columns = [_as_in_source(known.column(field.name), field) for field in keys]
        records = _records(digests_of(typed_keys(columns)), hashes)
        parted.add(records, (records[:, 0] >> np.uint64(58)).astype(np.int64))
    with storing(str(path)), path.open("wb") as file:
        for part in range(_PARTS):
            file.write(np.unique(parted.take(part), axis=0).data)
    return BoughtRows(path, sorted(versions))


def _as_in_source(column: Array, field: "pa.Field[Any]") -> Array:
    """The same value of another type has another key hash: a table may widen what it stores."""
    column = plain(column)
    if column.type.equals(field.type):
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise SinkError(
            f"incremental: the key column {field.name!r} is {column.type} in the table and"
            f" {field.type} in the source: {error}; give both one type"
        ) from None


def _versions(hashes: Array) -> set[int]:
    found: set[int] = set()
    for text in pc.unique(pc.replace_substring_regex(hashes, "-.*$", "")).to_pylist():
        version = int(text) if text.isascii() and text.isdigit() else None
        if version not in REQUEST_DIGESTS:
            raise SinkError(
                f"incremental: the table has request hashes of version {text!r}, which this release"
                " does not know; nothing was bought: upgrade batchrouter"
            )
        found.add(version)
    return found


def _records(digests: bytes, hashes: Array) -> npt.NDArray[np.uint64]:
    """Hash each row's key hash and request hash into one; two words a row."""
    keys = pa.Array.from_buffers(
        pa.binary(_DIGEST_BYTES), len(hashes), [None, py_buffer(digests)]
    ).cast(pa.binary())
    both = pc.binary_join_element_wise(keys, hashes.cast(pa.binary()), pa.scalar(b"", pa.binary()))
    return np.frombuffer(digests_of(both), ">u8").astype(np.uint64).reshape(-1, 2)


class BoughtRows:
    """Tells which rows a table holds already.

    Args:
        path: What `note_bought` wrote.
        versions: Of the hashes in it.
    """

    def __init__(self, path: Path, versions: Sequence[int]) -> None:
        self._path = path
        self._versions = versions
        count = path.stat().st_size // _DIGEST_BYTES
        self._step = 1 if count <= _HELD_ROWS else _STEP
        with path.open("rb") as file:
            chunks = [_read(file)[:: self._step] for _ in range(0, count, _HELD_ROWS)]
        self._firsts = np.concatenate(chunks) if chunks else np.empty((0, 2), np.uint64)

    def to_dict(self) -> dict[str, Any]:
        """Write what another process opens it by."""
        return {"path": str(self._path), "versions": list(self._versions)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "BoughtRows":
        """Open what `to_dict` wrote."""
        return cls(Path(told["path"]), told["versions"])

    def holds(
        self, digests: bytes, hashed: Callable[[int], npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.bool_]:
        """Tell for each row whether it is there.

        Args:
            digests: 16 bytes of each row's key hash.
            hashed: Gives 16 bytes of each row's request hash, by a version.

        Raises:
            StorageError: The file cannot be read.
        """
        count = len(digests) // _DIGEST_BYTES
        found = np.zeros(count, np.bool_)
        for version in self._versions if len(self._firsts) else ():
            hashes = codes(hashed(version).tobytes(), f"{version}-".encode())
            found |= self._found(_records(digests, hashes))
        return found

    def _found(self, records: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        blocks = np.searchsorted(self._firsts[:, 0], records[:, 0], side="right") - 1
        there = blocks >= 0
        if self._step == 1:
            return there & (self._firsts[blocks] == records).all(axis=1)
        found = np.zeros(len(records), np.bool_)
        with storing(str(self._path)), self._path.open("rb") as file:
            for at in np.flatnonzero(there).tolist():
                size = self._step * _DIGEST_BYTES
                block = os.pread(file.fileno(), size, int(blocks[at]) * size)
                held = np.frombuffer(block, np.uint64).reshape(-1, 2)
                found[at] = (held == records[at]).all(axis=1).any()
        return found


def _read(file: Any) -> npt.NDArray[np.uint64]:
    return np.fromfile(file, np.uint64, 2 * _HELD_ROWS).reshape(-1, 2)
