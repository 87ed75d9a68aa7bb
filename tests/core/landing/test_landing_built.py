"""The real builder's snapshots: what it sent and skipped lands beside its source columns."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.errors import SinkError
from batchrouter.landing.land import LandingIdentity, PartToLand, check_landing
from batchrouter.landing.sinks import open_sink
from batchrouter.manifest.build import build_manifest

OUTPUT = {"words": {"type": "integer"}}


@pytest.fixture
def built(kit: Any, tmp_path: Path) -> Any:
    source = pa.table({
        "day": pa.array([1, 1, 2, 2, 3], pa.date32()),
        "id": pa.array(["a", "b", "a", "b", "é"], pa.large_string()),
        "body": ["one", None, "two words", "three of them", '{"braces"}'],
        "tag": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
    })
    pq.write_table(source, tmp_path / "tickets.parquet")
    job = kit.job(
        {"kind": "chat", "user": "{body}", "output": OUTPUT},
        source=str(tmp_path / "tickets.parquet"),
        key=["day", "id"],
        keep=["tag"],
        on_null="skip",
        parts={"max_items": 2},
    )
    fs = fsspec.filesystem("file")
    for name in ("manifest", "rows"):
        (tmp_path / name).mkdir()
    manifest = build_manifest(
        job,
        fs=fs,
        manifest_dir=str(tmp_path / "manifest"),
        rows_dir=str(tmp_path / "rows"),
        token="t",
    )
    parts = [
        PartToLand(
            part.index,
            str(tmp_path / "rows" / part.rows_path),
            part.row_count,
            str(_answer(kit, tmp_path / "manifest" / part.manifest_path)),
            f"batch_{part.index}",
            "succeeded",
        )
        for part in manifest.parts
    ]
    return job, parts


def _answer(kit: Any, manifest: Path) -> Path:
    """Answer each line of a manifest by the number of words that it asks about."""
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines()):
        asked = json.loads(line)
        words = len(asked["input"]["messages"][-1]["content"].split())
        lines.append(
            kit.native(
                number,
                kit.chat_body(json.dumps({"words": words})),
                customer_item_id=asked["customer_item_id"],
            )
        )
    artifact = manifest.with_suffix(".artifact")
    artifact.write_bytes(kit.encoded(lines))
    return artifact


def test_a_built_table_lands_with_its_keys_and_its_skipped_rows(
    built: Any, run_folder: Any
) -> None:
    job, parts = built

    report = run_folder.land(job, parts=parts)

    rows = run_folder.landed()
    assert [(row["id"], row["tag"], row["words"], row["_status"]) for row in rows] == [
        ("a", "x", 1, "succeeded"),
        ("b", "y", None, "skipped"),
        ("a", "x", 2, "succeeded"),
        ("b", None, 3, "succeeded"),
        ("é", "y", 1, "succeeded"),
    ]
    assert rows[1]["_error_message"] == "null:body"
    assert [row["_batch_id"] for row in rows] == [
        "batch_0",
        None,
        "batch_0",
        "batch_1",
        "batch_1",
    ]
    assert all(row["_request_hash"].startswith("1-") for row in rows if row["words"])
    assert (report.rows, report.succeeded, report.skipped) == (5, 4, 1)


def test_a_table_of_other_columns_is_refused_before_anything_is_bought(
    built: Any, run_folder: Any
) -> None:
    job, parts = built
    run_folder.land(job, parts=parts)
    changed = job.model_copy(update={"keep": ()})
    given: dict[str, Any] = {
        "fs": fsspec.filesystem("file"),
        "parts": [PartToLand(part.index, part.rows_path, part.row_count) for part in parts],
        "sink": open_sink(str(run_folder.table_path)),
        "identity": LandingIdentity("label", "next", "next-ffff"),
    }

    assert check_landing(job, **given).names[:4] == ["day", "id", "tag", "words"]
    with pytest.raises(SinkError, match=r"tag .* is only in the table"):
        check_landing(changed, **given)
