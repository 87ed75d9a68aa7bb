"""Tables, jobs and what one machine makes of them, to hold Spark's against."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchrouter.job import Chat, Job, Route
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest

BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"
PURCHASE_COLUMNS = ("_batch_id", "_completed_at")


def tickets(rows: int) -> pa.Table:
    """Texts that need every escape, times, numbers, and here and there no body."""
    words = ("card", "transfer", 'a "quoted" refund', "fees\n— of\tmany", "日本語 \\ \x07")
    return pa.table({
        "ticket_id": pa.array([f"T-{row:06d}" for row in range(rows)]),
        "shop": pa.array([row % 7 for row in range(rows)], pa.int32()),
        "body": pa.array([
            None if row % 97 == 3 else f"{words[row % 5]} number {row}" for row in range(rows)
        ]),
        "at": pa.array(
            [1_700_000_000_000_000 + row * 61_000_001 for row in range(rows)],
            pa.timestamp("us", "UTC"),
        ),
        "amount": pa
        .array([row * 125 for row in range(rows)], pa.int64())
        .cast(pa.decimal128(20, 0))
        .cast(pa.decimal128(24, 2)),
    })


def job_of(source: Any, **more: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "label",
        "source": source,
        "key": ["shop", "ticket_id"],
        "keep": ["at", "amount"],
        "on_null": "skip",
        "request": Chat(
            system="Answer with JSON.",
            user="Of {at}, {amount} USD: {body}",
            output={"intent": {"type": "string", "enum": ["card", "refund"]}},
            parameters={"max_output_tokens": 32},
        ),
        "route": Route(models=["gpt-4o-mini"]),
        "budget": "50.00",
        "sink": "labelled",
    }
    return Job(**{**fields, **more})


def banking77_job(source: Any, **more: Any) -> Job:
    labels = json.loads((BANKING77 / "categories.json").read_text())
    request = Chat(
        system="Name the intent.",
        user="{text}",
        output={"intent": {"type": "string", "enum": labels}},
        parameters={"max_output_tokens": 32},
    )
    return job_of(source, key="query_id", keep=["text"], request=request, **more)


def built_here(job: Job, folder: Path) -> BuiltManifest:
    return build_manifest(
        job,
        fs=fsspec.filesystem("file"),
        manifest_dir=str(folder / "manifest"),
        rows_dir=str(folder / "rows"),
        token="one",
    )


def lines_of(folder: Path, built: BuiltManifest) -> list[bytes]:
    """All lines of all parts, sorted."""
    return sorted(
        line
        for part in built.parts
        for line in (folder / "manifest" / part.manifest_path).read_bytes().splitlines()
    )


def snapshot_of(folder: Path, built: BuiltManifest) -> pa.Table:
    """The snapshots' rows by item id, without their places; these must rise over the parts."""
    tables = [pq.read_table(folder / "rows" / part.rows_path) for part in built.parts]
    places = [place for table in tables for place in table.column("_row").to_pylist()]
    assert places == sorted(set(places))
    for part, table in zip(built.parts, tables, strict=True):
        numbers = [each for each in table.column("_line").to_pylist() if each is not None]
        assert numbers == list(range(part.item_count))
    whole = pa.concat_tables(tables)
    return whole.drop_columns(["_row", "_line"]).sort_by("_item_id")


def landed(table: Path) -> pa.Table:
    """The landed rows by key, without what a purchase decides."""
    rows = ds.dataset(table, format="parquet").to_table()
    kept = [name for name in rows.column_names if name not in PURCHASE_COLUMNS]
    return rows.select(kept).sort_by([(rows.column_names[at], "ascending") for at in (0, 1)])


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
