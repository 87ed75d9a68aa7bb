"""Keys → item ids, and the proof that no two rows share a key.

An item's id is a 128-bit hash of its typed key, in 26 base32 characters: the same key gives the
same id in every run, and no personal data goes to a provider. Eight bytes of the hash are kept per
row, beyond half a million rows on disk; after the last row they are sorted, and equal ones are
looked up in the row snapshots, so that a collision is told from a duplicate exactly.
"""

import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
import xxhash

from batchrouter.errors import DuplicateKeyError, ManifestError
from batchrouter.manifest.arrow import Array, DataType, Scalar, pc, py_buffer
from batchrouter.manifest.rendering import plain, plain_type, rendered
from batchrouter.manifest.storing import storing

HASH_VERSION = 1
"""Of item ids and request hashes alike; golden files pin the values."""

_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = np.frombuffer(
    b"".join(bytes([high, low]) for high in _ALPHABET for low in _ALPHABET), np.uint16
)
_VALUES = np.full(256, 255, np.uint8)
_VALUES[np.frombuffer(_ALPHABET, np.uint8)] = np.arange(len(_ALPHABET))
_LETTER_BITS = 5
_PAIR_BITS = 10
_DIGEST_BYTES = 16
_WORD_BITS = 64
CODE_LENGTH = 26
_NAMED = 5
_CANDIDATES_A_PASS = 1000
_HELD_KEYS = 500_000
_PART_BITS = 6
_PARTS = 2**_PART_BITS
"""Of 100 million keys a part has 1.6 million: 12.5 MB to sort."""

# A letter for each family of types, so that 5 and "5" differ while int32 and int64 do not.
_FAMILIES: tuple[tuple[Callable[[DataType], bool], str], ...] = (
    (pt.is_string, "s"),
    (pt.is_large_string, "s"),
    (pt.is_integer, "i"),
    (pt.is_boolean, "b"),
    (pt.is_decimal, "n"),
    (pt.is_date, "d"),
    (pt.is_time, "c"),
    (pt.is_timestamp, "t"),
    (pt.is_binary, "x"),
    (pt.is_large_binary, "x"),
    (pt.is_fixed_size_binary, "x"),
    (lambda kind: getattr(kind, "extension_name", None) == "arrow.uuid", "u"),
)

Digest = Callable[[bytes], bytes]


def key_problem(kind: DataType) -> str | None:
    """Say why a type cannot be a key, or None when it can."""
    plain_kind = plain_type(kind)
    if any(accepts(plain_kind) for accepts, _ in _FAMILIES):
        return None
    reason = " (equal numbers may differ in their last bit)" if pt.is_floating(plain_kind) else ""
    return f"{kind} cannot be a key{reason}; use text, whole numbers, dates or decimals"


def typed_keys(columns: Iterable[Array]) -> Array:
    """Write each row's key as bytes that differ when the key differs in value or in type.

    Returns:
        A binary array; for each column `<family><length>:<text>`.
    """
    parts: list[Array | Scalar] = []
    for column in columns:
        text = _key_text(plain(column))
        length = pc.binary_length(text).cast(pa.string()).cast(pa.binary())
        parts += [_scalar(_family(column.type)), length, _scalar(":"), text]
    return pc.binary_join_element_wise(*parts, _scalar(""))


def _key_text(column: Array) -> Array:
    if _family(column.type) == "x":
        return column.cast(pa.binary())
    if _family(column.type) == "n":  # 12.30 and 12.3 are one number, whatever the scale
        texts = [_shortest(format(value, "f")) for value in column.to_pylist()]
        return pa.array(texts, pa.string()).cast(pa.binary())
    return rendered(column).cast(pa.binary())


def _shortest(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _family(kind: DataType) -> str:
    kind = plain_type(kind)
    return next(letter for accepts, letter in _FAMILIES if accepts(kind))


def _scalar(text: str) -> Scalar:
    return pa.scalar(text.encode(), pa.binary())


def digests_of(keys: Array, digest: Digest = xxhash.xxh3_128_digest) -> bytes:
    """Hash each key; 16 bytes a row, one after the other."""
    return b"".join(map(digest, keys.to_pylist()))


def codes(digests: bytes, prefix: bytes = b"") -> Array:
    """Write each 16-byte digest as 26 base32 characters (lower case, no padding).

    Example:
        >>> codes(bytes(16))[0].as_py()
        'aaaaaaaaaaaaaaaaaaaaaaaaaa'
    """
    halves = words_of(digests)
    high, low = halves[:, 0].copy(), halves[:, 1].copy()
    width = len(prefix) + CODE_LENGTH
    pairs = np.empty((len(halves), CODE_LENGTH // 2), np.uint16)
    for at in range(CODE_LENGTH // 2):
        pairs[:, at] = _PAIRS[_ten_bits(high, low, at * _PAIR_BITS)]
    text = np.empty((len(halves), width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    text[:, len(prefix) :] = pairs.view(np.uint8)
    offsets = np.arange(len(halves) + 1, dtype=np.int32) * width
    buffers = [None, py_buffer(offsets), py_buffer(text)]
    return pa.Array.from_buffers(pa.string(), len(halves), buffers)


def words_of(digests: bytes) -> npt.NDArray[np.uint64]:
    """Read each 16-byte digest as two words, the high one first."""
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def words_of_codes(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Read what `codes` wrote; the words of what it would not write are of no digest.

    Args:
        letters: 26 of each row.
    """
    values = _VALUES[letters].astype(np.uint64)
    words = np.zeros((len(letters), 2), np.uint64)
    for at in range(CODE_LENGTH):
        shift = 2 * _WORD_BITS - (at + 1) * _LETTER_BITS
        for word, left in enumerate((shift - _WORD_BITS, shift)):
            if 0 <= left < _WORD_BITS:
                words[:, word] |= values[:, at] << np.uint64(left)
            elif -_LETTER_BITS < left < 0:
                words[:, word] |= values[:, at] >> np.uint64(-left)
    return words


def _ten_bits(
    high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], start: int
) -> npt.NDArray[np.uint64]:
    """Take the ten bits from `start` on of 128, zeros after the last."""
    end = start + _PAIR_BITS
    if end <= _WORD_BITS:
        bits = high >> np.uint64(_WORD_BITS - end)
    elif start < _WORD_BITS:
        bits = (high << np.uint64(end - _WORD_BITS)) | (low >> np.uint64(2 * _WORD_BITS - end))
    elif end <= 2 * _WORD_BITS:
        bits = low >> np.uint64(2 * _WORD_BITS - end)
    else:
        bits = low << np.uint64(end - 2 * _WORD_BITS)
    return bits & np.uint64(2**_PAIR_BITS - 1)


class SeenKeys:
    """Eight bytes of each row's digest; tells at the end which of them stand twice.

    Memory is flat: beyond `_HELD_KEYS` they go to files in a temporary folder (TMPDIR), 8 bytes a
    key, parted by their first bits so that equal ones meet. A context manager that removes them.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, digests: bytes) -> None:
        """Remember a batch of digests.

        Raises:
            StorageError: The temporary folder takes no more.
        """
        self._hashes.frombytes(_short(digests).tobytes())
        if len(self._hashes) >= _HELD_KEYS:
            self._spill()

    def repeated(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield the hashes that stand more than once, some at a time.

        Raises:
            StorageError: The temporary folder cannot be read or written.
        """
        if self._folder is None:
            yield _repeated(np.frombuffer(self._hashes, np.uint64))
            return
        self._spill()
        for part in range(_PARTS):
            path = self._path(part)
            if path.exists():
                with storing(str(path)):
                    hashes = np.fromfile(path, np.uint64)
                yield _repeated(hashes)

    def _spill(self) -> None:
        hashes = np.sort(np.frombuffer(self._hashes, np.uint64))
        self._hashes = array("Q")
        with storing(tempfile.gettempdir()):
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="batchrouter-keys-")
            firsts = np.arange(_PARTS, dtype=np.uint64) << np.uint64(_WORD_BITS - _PART_BITS)
            cuts = np.searchsorted(hashes, firsts)
            for part, some in enumerate(np.split(hashes, cuts[1:])):
                if len(some):
                    with self._path(part).open("ab") as file:
                        file.write(some.data)

    def _path(self, part: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{part:02d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    hashes = np.sort(hashes)
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _short(digests: bytes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(np.frombuffer(digests, np.uint64)[::2])


def refuse_duplicates(
    seen: SeenKeys,
    names: tuple[str, ...],
    snapshots: Callable[[], Iterator[pa.RecordBatch]],
    digest: Digest = xxhash.xxh3_128_digest,
) -> None:
    """Raise when two rows share a key.

    Args:
        seen: The hashes of all rows.
        names: The key columns.
        snapshots: Reads the row snapshots again: batches with `_row` and the key columns.
        digest: The hash of a typed key.

    Raises:
        DuplicateKeyError: Names the first keys and their rows.
        ManifestError: Two different keys have one 128-bit hash.
    """
    for some in _at_most(_CANDIDATES_A_PASS, seen.repeated()):
        rows_by_key: dict[bytes, list[int]] = {}
        shown: dict[bytes, str] = {}
        key_by_digest: dict[bytes, bytes] = {}
        for batch in snapshots():
            for at, key, full in _hits(batch, names, some, digest):
                rows = rows_by_key.setdefault(key, [])
                if len(rows) < _NAMED:
                    rows.append(batch.column("_row")[at].as_py())
                shown.setdefault(key, shown_key(batch, names, at))
                if key_by_digest.setdefault(full, key) != key:
                    raise ManifestError(
                        f"the keys {shown[key_by_digest[full]]} and {shown[key]} have one item id;"
                        " add a column to `key`"
                    )
        _refuse({shown[key]: rows for key, rows in rows_by_key.items() if len(rows) > 1})


def _at_most(
    count: int, hashes: Iterable[npt.NDArray[np.uint64]]
) -> Iterator[npt.NDArray[np.uint64]]:
    """Regroup arrays into arrays of so many, the last one shorter."""
    waiting = np.empty(0, np.uint64)
    for some in hashes:
        waiting = np.concatenate((waiting, some))
        while len(waiting) >= count:
            yield waiting[:count]
            waiting = waiting[count:]
    if len(waiting):
        yield waiting


def _hits(
    batch: pa.RecordBatch, names: tuple[str, ...], some: npt.NDArray[np.uint64], digest: Digest
) -> Iterator[tuple[int, bytes, bytes]]:
    keys = typed_keys([batch.column(name) for name in names])
    digests = digests_of(keys, digest)
    for at in np.flatnonzero(np.isin(_short(digests), some)).tolist():
        yield at, keys[at].as_py(), digests[at * _DIGEST_BYTES : (at + 1) * _DIGEST_BYTES]


def shown_key(batch: pa.RecordBatch, names: Sequence[str], at: int) -> str:
    """Write the key of one row for a person."""
    return ", ".join(f"{name}={_told(batch.column(name).slice(at, 1))}" for name in names)


def _told(column: Array) -> str:
    """Write one value of a key; quotes tell the text '1' from the number 1."""
    if _family(column.type) == "x":
        return repr(column[0].as_py())
    text: str = rendered(column)[0].as_py()
    return repr(text) if _family(column.type) == "s" else text


def _refuse(duplicates: dict[str, list[int]]) -> None:
    if not duplicates:
        return
    told = [
        f"{key} in rows {', '.join(map(str, sorted(rows)))}"
        for key, rows in list(duplicates.items())[:_NAMED]
    ]
    raise DuplicateKeyError(
        f"a key must stand in one row only (rows count from 0): {'; '.join(told)};"
        " remove the repeated rows from the source, or add a column to `key`"
    )
