"""A build writes every row once, cuts parts exactly, and leaves nothing behind when it fails."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.errors import (
    DuplicateKeyError,
    ManifestError,
    NullKeyError,
    SourceError,
    StorageError,
)
from batchrouter.job import Chat, Embedding, Job, Raw, Route
from batchrouter.manifest.build import build_manifest, snapshot_schema
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.check import check_job, preview
from batchrouter.manifest.packing import open_manifest

TABLE = pa.table({
    "id": [f"T-{n}" for n in range(10)],
    "body": [f'"{n}"\n' for n in range(10)],
    "n": list(range(10)),
})  # fmt: skip


def _job(source: Any = TABLE, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "j", "source": source, "key": "id", "request": Chat(user="{body} {n}"),
        "route": Route(models=["m"]), "budget": "none", "sink": "s",
    }  # fmt: skip
    return Job.model_validate({**fields, **changes})


class Built:
    """A build in a folder of its own, read back."""

    def __init__(self, root: Path, job: Job, **options: Any) -> None:
        self.root = root
        self.manifest = build_manifest(
            job, fs=fsspec.filesystem("file"), manifest_dir=f"{root}/manifest",
            rows_dir=f"{root}/rows", token="t", **options,
        )  # fmt: skip

    def lines(self, part: int) -> list[dict[str, Any]]:
        path = self.root / "manifest" / self.manifest.parts[part].manifest_path
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def rows(self, part: int) -> list[dict[str, Any]]:
        return pq.read_table(self.root / "rows" / self.manifest.parts[part].rows_path).to_pylist()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.root.rglob("*") if path.is_file())


def test_lines_and_snapshot_agree(tmp_path: Path) -> None:
    job = _job(keep=["n"], parts={"max_items": 4})
    built = Built(tmp_path, job)

    assert [part.item_count for part in built.manifest.parts] == [4, 4, 2]
    assert built.left() == [
        f"t-part-0000{n}.{end}" for n in range(3) for end in ("jsonl", "parquet")
    ]
    seen = 0
    for index, part in enumerate(built.manifest.parts):
        lines, rows = built.lines(index), built.rows(index)
        data = (tmp_path / "manifest" / part.manifest_path).read_bytes()
        assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert part.row_count == part.item_count == len(rows) == len(lines)
        assert part.input_tokens_estimate >= part.bytes // 3
        for at, (line, row) in enumerate(zip(lines, rows, strict=True)):
            assert row["_item_id"] == line["customer_item_id"]
            assert (row["_row"], row["_line"], row["_skip_reason"]) == (seen, at, None)
            assert (row["id"], row["n"]) == (f"T-{seen}", seen)
            assert line["input"]["messages"] == [{"role": "user", "content": f'"{seen}"\n {seen}'}]
            seen += 1
    schema = pq.read_schema(tmp_path / "rows" / "t-part-00000.parquet")
    assert schema.names == snapshot_schema(job, TABLE.schema).names
    assert schema.names == ["_row", "_line", "_item_id", "_request_hash", "_skip_reason", "id", "n"]


def test_the_result_passes_through_json(tmp_path: Path) -> None:
    manifest = Built(tmp_path, _job()).manifest

    assert BuiltManifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_parts_are_cut_exactly_by_bytes(tmp_path: Path) -> None:
    size = Built(tmp_path / "whole", _job()).manifest.parts[0].bytes // 10

    exact = Built(tmp_path / "a", _job(parts={"max_bytes": 3 * size})).manifest
    short = Built(tmp_path / "b", _job(parts={"max_bytes": 3 * size - 1})).manifest

    assert [part.item_count for part in exact.parts] == [3, 3, 3, 1]
    assert [part.item_count for part in short.parts] == [2, 2, 2, 2, 2]
    whole = (tmp_path / "whole/manifest/t-part-00000.jsonl").read_bytes()
    cut = b"".join(path.read_bytes() for path in sorted((tmp_path / "a/manifest").iterdir()))
    assert cut == whole


def test_packed_parts_hold_the_same_lines(tmp_path: Path) -> None:
    plain = Built(tmp_path / "plain", _job(parts={"max_items": 4})).manifest
    packed = Built(tmp_path / "packed", _job(parts={"max_items": 4, "compression": "zstd"}))

    for one, other in zip(plain.parts, packed.manifest.parts, strict=True):
        assert (one.sha256, one.bytes) == (other.sha256, other.bytes)
        assert other.manifest_path.endswith(".jsonl.zst")
        path = tmp_path / "packed" / "manifest" / other.manifest_path
        lines = (tmp_path / "plain" / "manifest" / one.manifest_path).read_bytes()
        with open_manifest(fsspec.filesystem("file"), str(path)) as file:
            assert file.read() == lines


def test_a_packed_part_of_many_frames_is_small_and_reads_back(tmp_path: Path) -> None:
    bodies = [f"{n} " + "the same words " * 60 for n in range(6000)]
    table = pa.table({"id": range(6000), "n": range(6000), "body": bodies})
    built = Built(tmp_path, _job(table, parts={"compression": "zstd"}))
    [part] = built.manifest.parts
    path = tmp_path / "manifest" / part.manifest_path

    with open_manifest(fsspec.filesystem("file"), str(path)) as file:
        lines = file.read()

    assert hashlib.sha256(lines).hexdigest() == part.sha256
    assert path.stat().st_size < part.bytes / 5
    path.write_bytes(path.read_bytes()[:-5])
    with (
        open_manifest(fsspec.filesystem("file"), str(path)) as file,
        pytest.raises(OSError, match="Truncated"),
    ):
        file.read()


def test_a_line_that_no_part_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"row 0 \(from 0\) makes a line of \d+ bytes.*max_bytes"
    ):
        Built(tmp_path, _job(parts={"max_bytes": 10}))


def test_a_line_over_the_routers_limit_is_named(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "body": ["a", "b", "c" * 2**20], "n": [1, 2, 3]})

    with pytest.raises(ManifestError, match=r"row 2 \(from 0\) makes a line of .* shorten"):
        Built(tmp_path, _job(table))


@pytest.mark.parametrize("table", [TABLE.slice(0, 0), TABLE.slice(0, 0).to_pandas()])
def test_an_empty_table_makes_one_empty_part(tmp_path: Path, table: Any) -> None:
    built = Built(tmp_path, _job(table))

    assert [(p.item_count, p.row_count, p.bytes) for p in built.manifest.parts] == [(0, 0, 0)]
    assert built.rows(0) == []
    assert built.left() == ["t-part-00000.jsonl", "t-part-00000.parquet"]


HOLED = pa.table({
    "id": list(range(6)),
    "body": [None, "b", None, "d", "e", None],
    "n": [0, 1, 2, None, 4, 5],
})  # fmt: skip


def test_a_null_is_an_error_that_names_column_and_row(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"column 'body', row 0 \(from 0\) is NULL"):
        Built(tmp_path, _job(HOLED))


def test_a_null_may_be_empty_text(tmp_path: Path) -> None:
    built = Built(tmp_path, _job(HOLED, on_null="empty"))

    contents = [line["input"]["messages"][0]["content"] for line in built.lines(0)]
    assert contents == [" 0", "b 1", " 2", "d ", "e 4", " 5"]


def test_skipped_rows_stand_in_the_part_that_was_open(tmp_path: Path) -> None:
    built = Built(tmp_path, _job(HOLED, on_null="skip", parts={"max_items": 1}))

    assert [(p.item_count, p.row_count, p.skipped_count) for p in built.manifest.parts] == [
        (1, 4, 3),
        (1, 2, 1),
    ]
    rows = built.rows(0) + built.rows(1)
    assert [row["_row"] for row in rows] == list(range(6))
    assert [row["_line"] for row in rows] == [None, 0, None, None, 0, None]
    assert [row["_skip_reason"] for row in rows] == [
        "null:body", None, "null:body", "null:n", None, "null:body",
    ]  # fmt: skip
    assert all((row["_request_hash"] is None) == (row["_line"] is None) for row in rows)
    assert all(row["_item_id"] for row in rows)
    assert (built.manifest.item_count, built.manifest.skipped_count) == (2, 4)


def test_a_part_may_hold_skipped_rows_only(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "body": pa.nulls(2, pa.string()), "n": [1, 2]})

    built = Built(tmp_path, _job(table, on_null="skip"))

    assert (built.manifest.item_count, built.manifest.row_count) == (0, 2)


def _damaged_text() -> pa.Array:
    # Bytes that are no UTF-8 in a string column: Arrow does not look when it reads.
    return pa.array([b"ok", b"also", b"\xff\xfe", b"\xed\xa0\x80"]).view(pa.string())


@pytest.mark.parametrize("column", ["body", "id", "kept"])
def test_invalid_utf8_names_column_and_row(tmp_path: Path, column: str) -> None:
    fields: dict[str, Any] = {
        "id": list("abcd"),
        "body": list("abcd"),
        "n": [1, 2, 3, 4],
        "kept": list("abcd"),
    }
    table = pa.table({**fields, column: _damaged_text()})
    pq.write_table(table, tmp_path / "t.parquet")

    for source in (table, tmp_path / "t.parquet"):
        with pytest.raises(
            ManifestError, match=rf"column '{column}', row 2 \(from 0\): is not UTF-8"
        ):
            Built(tmp_path / "out", _job(source, keep=["kept"]))
    assert not list((tmp_path / "out").rglob("t-part*"))


def test_invalid_utf8_in_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,body,n\n1,a,1\n2,\xff,2\n")

    with pytest.raises(ManifestError, match=r"column 'body', row 1 \(from 0\): is not UTF-8"):
        Built(tmp_path / "out", _job(tmp_path / "t.csv"))


def test_a_null_key_names_the_rows(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", None, "c", None], "body": list("abcd"), "n": [1, 2, 3, 4]})

    with pytest.raises(NullKeyError, match=r"key column 'id' is NULL in row 1, 3 \(from 0\)"):
        Built(tmp_path, _job(table))


def test_a_duplicate_key_names_key_and_rows_over_all_parts(tmp_path: Path) -> None:
    table = pa.table({"id": [*range(20_000), 7], "body": ["x"] * 20_001, "n": [0] * 20_001})

    with pytest.raises(DuplicateKeyError, match=r"id=7 in rows 7, 20000"):
        Built(tmp_path, _job(table, parts={"max_items": 6000}))
    assert not list(tmp_path.rglob("t-part*"))


def test_keys_of_several_columns_are_unique_together(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 1, 2], "b": ["x", "y", "x"], "body": list("abc"), "n": [1, 2, 3]})

    assert Built(tmp_path, _job(table, key=["a", "b"])).manifest.item_count == 3
    with pytest.raises(DuplicateKeyError, match="a=1"):
        Built(tmp_path, _job(table, key="a"))


def test_a_failing_build_keeps_what_others_wrote(tmp_path: Path) -> None:
    Built(tmp_path, _job())
    (tmp_path / "manifest" / "other.jsonl").touch()

    with pytest.raises(ManifestError):
        build_manifest(
            _job(HOLED), fs=fsspec.filesystem("file"), manifest_dir=f"{tmp_path}/manifest",
            rows_dir=f"{tmp_path}/rows", token="again",
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "other.jsonl", "t-part-00000.jsonl", "t-part-00000.parquet",
    ]  # fmt: skip


def test_an_interrupted_build_removes_its_files(tmp_path: Path) -> None:
    def interrupt(_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Built(tmp_path, _job(parts={"max_items": 3}), on_progress=interrupt)
    assert not list(tmp_path.rglob("t-part*"))


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text("a file, not a folder")

    with pytest.raises(StorageError, match="cannot be written"):
        Built(tmp_path, _job())


def test_a_full_disk_is_a_storage_error_that_can_be_retried(tmp_path: Path) -> None:
    class FullDisk(fsspec.get_filesystem_class("file")):  # type: ignore[misc] - its class is known at run time
        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            return (
                Path("/dev/full").open("wb", buffering=0)
                if "jsonl" in path
                else super().open(path, mode, **options)
            )

    with pytest.raises(StorageError, match="No space left on device") as caught:
        build_manifest(
            _job(), fs=FullDisk(skip_instance_cache=True), manifest_dir=f"{tmp_path}/m",
            rows_dir=f"{tmp_path}/r", token="t",
        )  # fmt: skip
    assert caught.value.retryable
    assert not list(tmp_path.rglob("t-part*"))


def test_other_file_systems_get_the_same_bytes(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    local = Built(tmp_path, _job())

    remote = build_manifest(_job(), fs=memory, manifest_dir="/run/m", rows_dir="/run/r", token="t")

    assert remote.parts[0].sha256 == local.manifest.parts[0].sha256
    assert (
        hashlib.sha256(memory.cat("/run/m/t-part-00000.jsonl")).hexdigest()
        == remote.parts[0].sha256
    )
    assert pq.read_table(memory.open("/run/r/t-part-00000.parquet")).num_rows == 10


def test_a_limit_reads_the_first_rows(tmp_path: Path) -> None:
    seen: list[int] = []

    built = Built(tmp_path, _job(), limit=3, on_progress=seen.append)

    assert (built.manifest.row_count, seen) == (3, [3])
    assert Built(tmp_path / "none", _job(), limit=0).manifest.row_count == 0


def test_missing_columns_are_refused_all_at_once(tmp_path: Path) -> None:
    job = _job(key="idd", keep=["m"], request=Chat(system="{boddy}", user="{n.x}"))

    with pytest.raises(SourceError) as caught:
        Built(tmp_path, job)

    told = str(caught.value)
    assert "key: the source has no column 'idd'; did you mean 'id'?" in told
    assert "keep: the source has no column 'm'" in told
    assert "request.system: the source has no column 'boddy'; did you mean 'body'?" in told
    assert "request.user: 'n' is int64, which has no fields; write {n}" in told
    assert not list(tmp_path.iterdir())


def test_check_says_what_would_stop_a_build() -> None:
    typed = TABLE.append_column("f", pa.array([0.5] * 10)).append_column("b", pa.array([b""] * 10))
    nested = pa.table({"id": [1], "s": [{"city": "x"}], "n": [1]})

    assert check_job(_job()) == []
    assert "key: 'f': double cannot be a key" in check_job(_job(typed, key="f"))[0]
    assert (
        "request.user: 'b': binary has no text"
        in check_job(_job(typed, request=Chat(user="{b}")))[0]
    )
    assert check_job(_job(nested, request=Chat(user="{s.city}"))) == []
    assert "did you mean 'city'?" in check_job(_job(nested, request=Chat(user="{s.cty}")))[0]
    assert "'n' is int64; it must be JSON" in check_job(_job(nested, request=Raw(body="n")))[0]
    assert "does not exist" in check_job(_job("nowhere.parquet"))[0]
    assert "is NULL" in check_job(_job(HOLED))[0]


def test_preview_renders_the_first_lines() -> None:
    lines = [json.loads(line) for line in preview(_job(), 2)]

    assert [line["input"]["messages"][0]["content"] for line in lines] == ['"0"\n 0', '"1"\n 1']


def test_struct_fields_and_raw_structs_are_sent(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "s": [{"input": "é", "max_output_tokens": 3}]})

    templated = Built(tmp_path / "a", _job(table, request=Embedding(input="{s.input}")))
    raw = Built(tmp_path / "b", _job(table, request=Raw(body="s", operation="embeddings")))

    assert templated.lines(0)[0]["input"] == {"input": "é"}
    assert raw.lines(0)[0]["input"] == {"input": "é", "max_output_tokens": 3}
    assert raw.manifest.max_output_tokens == 3


def test_a_bad_raw_body_names_its_row(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "p": [None, "{}", "{"]})

    job = _job(table, request=Raw(body="p"), on_null="skip")

    with pytest.raises(ManifestError, match=r"column 'p', row 2 \(from 0\): is not JSON"):
        Built(tmp_path, job)
    assert check_job(job)[0].startswith("column 'p', row 2 (from 0): is not JSON")


def test_the_request_hash_is_the_requests_and_not_the_rows(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "body": ["a", "a", "b"], "n": [1, 1, 1]})

    one, two, three = (row["_request_hash"] for row in Built(tmp_path, _job(table)).rows(0))

    assert one == two != three
    assert len(one) == 28
    assert one.startswith("1-")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Four times the rows, and the same peak (in a process of its own, on many row groups)."""
    code = """
import sys, fsspec
from batchrouter.job import Chat, Job, Route
from batchrouter.manifest.build import build_manifest
job = Job(name="j", source=sys.argv[1], key="id", request=Chat(user="{body}"),
          route=Route(models=["m"]), budget="none", sink="s", keep=["body"])
out = sys.argv[2]
build_manifest(job, fs=fsspec.filesystem("file"), manifest_dir=out, rows_dir=out, token="t")
# The peak of this program alone; getrusage would tell the parent's before the exec.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    peaks: list[int] = []
    for groups in (5, 20):
        path = tmp_path / f"{groups}.parquet"
        schema = pa.schema([("id", pa.int64()), ("body", pa.string())])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for group in range(groups):
                ids = range(group * 2500, group * 2500 + 2500)
                writer.write_table(
                    pa.table([list(ids), [f"{n} " * 300 for n in ids]], schema=schema)
                )
        out = subprocess.run(
            [sys.executable, "-c", code, str(path), str(tmp_path / str(groups))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(out.stdout) // 1024)

    assert peaks[1] < peaks[0] + 30
    assert peaks[1] < 320, peaks


def test_every_kill_point_is_passed_in_order(tmp_path: Path) -> None:
    code = """
import sys, fsspec, pyarrow as pa
from batchrouter.job import Chat, Job, Route
from batchrouter.manifest.build import build_manifest
job = Job(name="j", source=pa.table({"id": [1, 2]}), key="id", request=Chat(user="{id}"),
          route=Route(models=["m"]), budget="none", sink="s", parts={"max_items": 1})
out = sys.argv[1]
build_manifest(job, fs=fsspec.filesystem("file"), manifest_dir=out, rows_dir=out, token="t")
"""
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    environment = {**os.environ, "BATCHROUTER_KILL_LOG": str(log)}
    subprocess.run(command, env=environment, check=True)
    one_part = ["before_part", "after_part", "before_close", "after_close"]
    assert log.read_text().split() == [f"manifest.{point}" for point in one_part * 2]

    killed = {**os.environ, "BATCHROUTER_KILL_AT": "manifest.before_close:2"}
    assert subprocess.run(command, env=killed, check=False).returncode == -9
    assert subprocess.run(command, env=environment, check=True).returncode == 0
