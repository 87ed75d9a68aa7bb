"""What a table holds as succeeded, by key and request: rows that need not be bought again.

Of each such row 16 bytes are kept, its key's hash and its request's in one, sorted in one file on
disk. Up to four million are held in memory; of more, the first of each 64 is held, and the rest
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
from batchrouter.manifest.arrow import Array, pc
from batchrouter.manifest.files import NumberedFiles
from batchrouter.manifest.keys import (
    CODE_LENGTH,
    HASH_VERSION,
    digests_of,
    typed_keys,
    words_of,
    words_of_codes,
)
from batchrouter.manifest.rendering import plain
from batchrouter.manifest.slices import offsets_of
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
        letters = pc.subtract(pc.binary_length(hashes), pc.find_substring(hashes, "-"))
        is_ours = pc.equal(letters, len("-") + CODE_LENGTH)
        columns = [_as_in_source(known.column(field.name), field).filter(is_ours) for field in keys]
        requests = words_of_codes(_codes(hashes.filter(is_ours)))
        records = words_of(digests_of(typed_keys(columns))) ^ requests
        parted.add(records, (records[:, 0] >> np.uint64(58)).astype(np.int64))
    with storing(str(path)), path.open("wb") as file:
        for part in range(_PARTS):
            file.write(_sorted(parted.take(part)).data)
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
    is_newest = pc.starts_with(hashes, f"{HASH_VERSION}-")
    others = hashes.filter(pc.invert(is_newest))
    found: set[int] = {HASH_VERSION} if len(others) < len(hashes) else set()
    for text in pc.unique(pc.replace_substring_regex(others, "-.*$", "")).to_pylist():
        version = int(text) if text.isascii() and text.isdigit() else None
        if version not in REQUEST_DIGESTS:
            raise SinkError(
                f"incremental: the table has request hashes of version {text!r}, which this release"
                " does not know; nothing was bought: upgrade batchrouter"
            )
        found.add(version)
    return found


def _codes(hashes: Array) -> npt.NDArray[np.uint8]:
    """Give the letters behind the versions, 26 for each row."""
    texts = pc.binary_slice(hashes.cast(pa.binary()), -CODE_LENGTH)
    offsets = offsets_of(texts)
    letters = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    return letters[offsets[0] : offsets[-1]].reshape(-1, CODE_LENGTH)


def _sorted(records: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sort records, and leave out those that stand twice."""
    records = records[np.lexsort((records[:, 1], records[:, 0]))]
    is_new = np.ones(len(records), np.bool_)
    is_new[1:] = (records[1:] != records[:-1]).any(axis=1)
    return records[is_new]


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
        firsts = np.concatenate(chunks) if chunks else np.empty((0, 2), np.uint64)
        # Apart: a search in one column of two would copy it each time.
        self._firsts = np.ascontiguousarray(firsts[:, 0])
        self._seconds = np.ascontiguousarray(firsts[:, 1])

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
            found |= self._found(words_of(digests) ^ words_of(hashed(version).tobytes()))
        return found

    def _found(self, records: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        blocks = np.searchsorted(self._firsts, records[:, 0], side="right") - 1
        there = blocks >= 0
        if self._step == 1:
            is_first = self._firsts[blocks] == records[:, 0]
            return there & is_first & (self._seconds[blocks] == records[:, 1])
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
