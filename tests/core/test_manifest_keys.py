"""Item ids follow the typed key; duplicates are told from collisions exactly."""

import base64
import datetime as dt
import decimal
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.errors import DuplicateKeyError, ManifestError
from batchrouter.manifest.keys import (
    CODE_LENGTH,
    Digest,
    SeenKeys,
    codes,
    digests_of,
    key_problem,
    refuse_duplicates,
    typed_keys,
    words_of,
    words_of_codes,
)


def _ids(*columns: pa.Array) -> list[str]:
    return codes(digests_of(typed_keys(columns))).to_pylist()


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5).map(b"".join))
def test_codes_are_read_back_as_the_words_of_their_digests(digests: bytes) -> None:
    letters = np.frombuffer("".join(codes(digests).to_pylist()).encode(), np.uint8)

    words = words_of_codes(letters.reshape(-1, CODE_LENGTH))

    assert words.tolist() == words_of(digests).tolist()
    assert words.astype(">u8").tobytes() == digests


def test_codes_are_base32_of_the_digest() -> None:
    digests = [os.urandom(16) for _ in range(500)] + [bytes(16), b"\xff" * 16]

    expected = [base64.b32encode(each).decode().rstrip("=").lower() for each in digests]

    assert codes(b"".join(digests)).to_pylist() == expected
    assert codes(digests[0], b"1-").to_pylist() == [f"1-{expected[0]}"]
    assert codes(b"").to_pylist() == []


def test_an_id_depends_on_value_and_family_and_not_on_width() -> None:
    assert _ids(pa.array([5], pa.int32())) == _ids(pa.array([5], pa.uint64()))
    assert _ids(pa.array([5])) != _ids(pa.array(["5"]))
    assert _ids(pa.array(["a"])) == _ids(pa.array(["a"], pa.large_string()))
    assert _ids(pa.array(["a"])) == _ids(pa.array(["a"]).dictionary_encode())
    assert _ids(pa.array(["a"])) == _ids(pa.array(["a"], pa.string_view()))
    assert _ids(pa.array([dt.date(2024, 1, 2)])) != _ids(pa.array(["2024-01-02"]))
    short = pa.array([decimal.Decimal("12.3")], pa.decimal128(5, 1))
    assert _ids(short) == _ids(short.cast(pa.decimal128(9, 4)))
    big = [decimal.Decimal(10**37 + 1), decimal.Decimal(10**37 + 2)]
    assert len(set(_ids(pa.array(big, pa.decimal128(38, 0))))) == 2


def test_several_columns_cannot_be_mistaken_for_each_other() -> None:
    keys = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("1:a", "s"), ("a", "1:s")]

    ids = _ids(pa.array([a for a, _ in keys]), pa.array([b for _, b in keys]))

    assert len(set(ids)) == len(keys)


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.int8()), pa.null(), pa.duration("s")])
def test_types_that_make_no_key_are_refused(kind: pa.DataType) -> None:
    assert "cannot be a key" in (key_problem(kind) or "")


@pytest.fixture(params=[None, 1, 7], ids=["in memory", "on disk", "on disk in bulk"], autouse=True)
def held_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through every case with the hashes in memory, and with all of them on disk."""
    if request.param:
        monkeypatch.setattr("batchrouter.manifest.keys._HELD_KEYS", request.param)


def _refuse(keys: list[str], digest: Digest) -> None:
    with SeenKeys() as seen:
        _fill_and_refuse(seen, keys, digest)


def _fill_and_refuse(seen: SeenKeys, keys: list[str], digest: Digest) -> None:
    batches = [
        pa.record_batch({
            "_row": pa.array(range(at, min(at + 3, len(keys)))),
            "k": keys[at : at + 3],
        })
        for at in range(0, len(keys), 3)
    ]
    for batch in batches:
        seen.add(digests_of(typed_keys([batch.column("k")]), digest))

    def again() -> Iterator[pa.RecordBatch]:
        yield from batches

    refuse_duplicates(seen, ("k",), again, digest)


def _half(key: bytes) -> bytes:
    """Collide in the eight bytes that are kept, never in all sixteen."""
    return bytes(8) + key[-8:].rjust(8, b"\0")


def test_a_duplicate_is_named_with_its_rows() -> None:
    with pytest.raises(DuplicateKeyError, match=r"k='b' in rows 1, 4; remove the repeated"):
        _refuse(["a", "b", "c", "d", "b"], lambda key: key.ljust(16, b"\0")[:16])


def test_collisions_of_the_kept_half_are_no_duplicates() -> None:
    _refuse(["a", "b", "c", "d", "e"], _half)


def test_a_duplicate_among_collisions_is_found() -> None:
    with pytest.raises(DuplicateKeyError, match=r"k='d' in rows 3, 6"):
        _refuse(["a", "b", "c", "d", "e", "f", "d"], _half)


def test_a_collision_of_the_whole_id_is_no_silent_loss() -> None:
    with pytest.raises(ManifestError, match="k='a' and k='b' have one item id"):
        _refuse(["a", "b"], lambda _: bytes(16))


def test_only_the_first_keys_and_rows_are_named() -> None:
    with pytest.raises(DuplicateKeyError) as caught:
        _refuse(
            ["x"] * 100 + [f"k{n}" for n in range(50)] * 2, lambda key: key.rjust(16, b"\0")[:16]
        )

    assert len(str(caught.value)) < 500


def test_hashes_on_disk_are_removed_and_all_repeated_ones_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("batchrouter.manifest.keys._HELD_KEYS", 1000)
    chance = np.random.default_rng(7)
    hashes = chance.integers(0, 2**64, 20_000, np.uint64)
    hashes[-50:] = hashes[:50]
    digests = np.stack((hashes, np.zeros_like(hashes)), axis=1)

    with SeenKeys() as seen:
        for start in range(0, len(hashes), 300):
            seen.add(digests[start : start + 300].tobytes())
        assert list(tmp_path.iterdir())
        found = np.concatenate(list(seen.repeated()))

    assert sorted(found.tolist()) == sorted(hashes[:50].tolist())
    assert list(tmp_path.iterdir()) == []
