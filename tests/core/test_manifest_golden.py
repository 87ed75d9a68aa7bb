"""Hashes and lines of one job, pinned: an upgrade must not buy a table again silently.

When this fails, the change buys every table again. If that is meant, raise the hash's version and
renew the file with ``RENEW_GOLDEN=1``.
"""

import datetime as dt
import decimal
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.job import Chat, Embedding, Job, Raw, Route, Workflow
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.compiledwriter import COMPILED_VARIABLE

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"

MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
TABLE = pa.table({
    "id": pa.array(["T-1", "T-2", 'ü"\\'], pa.string()),
    "number": pa.array([1, 2, 3], pa.int32()),
    "day": pa.array([dt.date(2024, 1, 2)] * 3),
    "price": pa.array([decimal.Decimal("1.50")] * 3, pa.decimal128(8, 2)),
    "at": pa.array([MOMENT] * 3, pa.timestamp("us", "UTC")),
    "ratio": pa.array([0.1, 1.0, 1e16]),
    "body": pa.array(["plain", 'a "q" \\ \n\r\t\x01 é😀', "\u2028\x7f"]),
    "meta": pa.array([{"city": "Köln", "tags": ["a", None]}] * 3),
    "payload": pa.array(['{"input": "x", "top_p": 1}'] * 3),
})  # fmt: skip

REQUESTS: dict[str, tuple[Any, Any, Any]] = {
    "chat": (
        Chat(
            system='Say {"intent": "…"}',
            user="{body} {number} {day} {price} {at} {ratio} {meta.city} {meta}",
            output={"intent": {"type": "string", "enum": ["yes", "no"]}},
            parameters={"temperature": 0, "max_output_tokens": 64},
        ),
        Route(models=["gpt-4o-mini"]),
        "id",
    ),
    "embedding": (
        Embedding(input="{body}", parameters={"dimensions": 8}),
        Route(models=["embed"]),
        ["id", "number"],
    ),
    "workflow": (
        Workflow(input={"subject": "{id}", "body": "{body}"}),
        Route(workflow="classify-support-tickets@v3"),
        ["day", "price", "number"],
    ),
    "raw": (Raw(body="payload"), Route(models=["gpt-4o-mini"]), ["at", "number"]),
}


@pytest.mark.parametrize("is_compiled", ["1", "0"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_lines_ids_and_hashes_stay(
    tmp_path: Path, kind: str, is_compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILED_VARIABLE, is_compiled)
    request, route, key = REQUESTS[kind]
    job = Job(
        name="golden", source=TABLE, key=key, request=request, route=route, budget="1", sink="s"
    )

    build_manifest(
        job, fs=fsspec.filesystem("file"), manifest_dir=str(tmp_path), rows_dir=str(tmp_path),
        token="t",
    )  # fmt: skip

    rows = pq.read_table(tmp_path / "t-part-00000.parquet").to_pylist()
    made = {
        "fingerprint": job.fingerprint(),
        "lines": (tmp_path / "t-part-00000.jsonl").read_text("utf-8").split("\n")[:-1],
        "item_ids": [row["_item_id"] for row in rows],
        "request_hashes": [row["_request_hash"] for row in rows],
    }
    if os.environ.get("RENEW_GOLDEN"):
        pinned = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        renewed = json.dumps({**pinned, kind: made}, indent=1, ensure_ascii=False)
        GOLDEN.write_text(f"{renewed}\n")
    assert made == json.loads(GOLDEN.read_text())[kind]
