"""A run folder made by hand: row snapshots and artifacts of every shape, landed for real."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.job import Job
from batchrouter.landing.land import LandingIdentity, LandingReport, PartToLand, land_parts
from batchrouter.landing.sinks import open_sink

INTENT = {"intent": {"type": "string", "enum": ["billing", "bug"]}, "urgent": {"type": "boolean"}}


IDENTITY = LandingIdentity("label", "2026-11-22", "2026-11-22-0a1b2c")


def item_id(row: int) -> str:
    return f"item{row:022d}"


def chat_body(text: str | None, **message: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [
            {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
        ],
    }


def native(row: int, output: Any = "unset", **fields: Any) -> dict[str, Any]:
    """A completed line of the contract; `fields` replace its own."""
    body = chat_body(f"answer {row}") if output == "unset" else output
    return {
        "customer_item_id": item_id(row),
        "batch_item_id": f"item_{row}",
        "sequence_no": row,
        "operation": "responses",
        "status": "completed",
        "provider": "simulated-a",
        "provider_model": "gpt-4o-mini",
        "attempt": 1,
        "usage": {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12},
        "cost": {"currency": "usd", "amount": "0.000001059"},
        "output": body,
        "error": None,
        "completed_at": "2026-11-22T10:00:00.123Z",
        **fields,
    }


def encoded(lines: Iterable[dict[str, Any] | bytes]) -> bytes:
    return b"".join(
        each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode() + b"\n"
        for each in lines
    )


@dataclass
class RunFolder:
    root: Path
    identity: LandingIdentity = IDENTITY
    parts: list[PartToLand] = field(default_factory=list[PartToLand])
    rows_so_far: int = 0

    def add_part(
        self,
        rows: int,
        lines: Sequence[dict[str, Any] | bytes] | None,
        *,
        skipped: Sequence[int] = (),
        **told: Any,
    ) -> PartToLand:
        """Write a snapshot of so many rows, and the artifact; `skipped` are source rows."""
        index = len(self.parts)
        numbers = range(self.rows_so_far, self.rows_so_far + rows)
        sent = iter(range(rows))
        table = pa.table({
            "_row": pa.array(numbers, pa.int64()),
            "_line": pa.array([None if n in skipped else next(sent) for n in numbers], pa.int64()),
            "_item_id": pa.array([item_id(n) for n in numbers], pa.string()),
            "_request_hash": pa.array([f"hash{n}" for n in numbers], pa.string()),
            "_skip_reason": pa.array(
                ["body is NULL" if n in skipped else None for n in numbers], pa.string()
            ),
            "ticket_id": pa.array(numbers, pa.int32()),
            "subject": pa.array([f"subject {n} é" for n in numbers], pa.large_string()),
        })
        self.rows_so_far += rows
        rows_path = self.root / f"rows-{index}.parquet"
        pq.write_table(table, rows_path, row_group_size=1000)
        artifact = None
        if lines is not None:
            artifact = self.root / f"artifact-{index}.jsonl"
            artifact.write_bytes(encoded(lines))
        part = PartToLand(
            index=index,
            rows_path=str(rows_path),
            row_count=rows,
            artifact_path=str(artifact) if artifact else None,
            batch_id=told.pop("batch_id", f"batch_{index}"),
            batch_state=told.pop("batch_state", "succeeded"),
            **told,
        )
        self.parts.append(part)
        return part

    @property
    def table_path(self) -> Path:
        return self.root / "lake" / "tickets"

    @property
    def rejects(self) -> list[dict[str, Any]]:
        files = sorted((self.root / "rejects").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def land(self, job: Job, sink_url: str | None = None, **replaced: Any) -> LandingReport:
        rejects = self.root / "rejects"
        rejects.mkdir(exist_ok=True)
        given: dict[str, Any] = {
            "fs": fsspec.filesystem("file"),
            "parts": self.parts,
            "sink": open_sink(sink_url or str(self.table_path)),
            "identity": self.identity,
            "rejects_dir": str(rejects),
            "token": "t0k3n",
        }
        return land_parts(job, **(given | replaced))

    def landed(self) -> list[dict[str, Any]]:
        folder = f"{self.identity.job_name}--{self.identity.run_slug}"
        return pq.read_table(self.table_path / folder / "rows.parquet").to_pylist()


def make_job(request: dict[str, Any] | None = None, **fields: Any) -> Job:
    given: dict[str, Any] = {
        "name": "label",
        "source": "tickets.parquet",
        "key": "ticket_id",
        "keep": ["subject"],
        "request": request or {"kind": "chat", "user": "{subject}"},
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "1.00",
        "sink": "lake/tickets",
    }
    return Job.model_validate(given | fields)


class Kit:
    """What the tests of landing build their cases from."""

    job = staticmethod(make_job)
    native = staticmethod(native)
    chat_body = staticmethod(chat_body)
    item_id = staticmethod(item_id)
    encoded = staticmethod(encoded)

    @property
    def text_job(self) -> Job:
        return make_job()

    @property
    def intent_job(self) -> Job:
        return make_job({"kind": "chat", "user": "{subject}", "output": INTENT})


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)
