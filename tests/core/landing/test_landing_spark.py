"""The tasks of a landing on Spark, done one after the other here: counts and rows are the same.

How Spark itself runs them is tried in `tests/on_spark`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from batchrouter.errors import LandingError
from batchrouter.landing.report import LandingReport
from batchrouter.landing.sinks import Writing, open_sink
from batchrouter.spark.landing import landed_on_spark
from batchrouter.spark.tasks import SAID

OF_THE_ATTEMPT = ("duration_s", "location", "bytes", "reject_files")


class OneProcess:
    """As much of Spark as hands tasks their numbers, and brings back what they say."""

    def range(self, start: int, end: int, step: int, partitions: int) -> "OneProcess":
        assert partitions == end
        self.numbers = range(start, end, step)
        return self

    def mapInArrow(self, task: Callable[[Any], Iterator[Any]], schema: str) -> "OneProcess":  # noqa: N802 - Spark's name
        assert schema == SAID
        batches = [pa.record_batch({"id": [number]}) for number in self.numbers]
        self.rows = [row for each in batches for b in task(iter([each])) for row in b.to_pylist()]
        return self

    def collect(self) -> list[dict[str, Any]]:
        return self.rows[::-1]


def counted(report: LandingReport) -> dict[str, Any]:
    told = report.to_dict()
    return {name: value for name, value in told.items() if name not in OF_THE_ATTEMPT}


def land_on_spark(run_folder: Any, job: Any, **given: Any) -> LandingReport:
    landed_dir = run_folder.root / "landed"
    landed_dir.mkdir(exist_ok=True)
    rejects = run_folder.root / "rejects"
    rejects.mkdir(exist_ok=True)
    return landed_on_spark(
        job,
        spark=OneProcess(),
        fs=fsspec.filesystem("file"),
        landed_dir=str(landed_dir),
        rejects_dir=str(rejects),
        token="there",
        **{
            "parts": run_folder.parts,
            "sink": open_sink(str(run_folder.table_path)),
            "identity": run_folder.identity,
            **given,
        },
    )


@pytest.fixture
def answered(kit: Any, run_folder: Any) -> Any:
    """Three parts: one in order, one with every kind of bad line, one that never came back."""
    good = '{"intent": "bug", "urgent": true}'
    run_folder.add_part(4, [kit.native(n, kit.chat_body(good)) for n in (0, 1, 3)], skipped=[2])
    lines: list[Any] = [kit.native(n, kit.chat_body(good)) for n in (7, 5, 4)]
    failure = {"code": "provider_error", "message": "no"}
    lines += [kit.native(6, None, status="failed", error=failure)]
    lines += [b"{broken\n", kit.native(5, kit.chat_body(good)), kit.native(99)]
    lines += [kit.native(8, kit.chat_body("nonsense"))]
    run_folder.add_part(6, lines)
    run_folder.add_part(3, None, batch_state="expired")
    return run_folder


def test_counts_rejects_and_rows_are_those_of_one_machine(kit: Any, answered: Any) -> None:
    here = answered.land(kit.intent_job)
    rows, rejected = answered.landed(), answered.rejects
    for path in (answered.root / "rejects").iterdir():
        path.unlink()

    there = land_on_spark(answered, kit.intent_job)

    assert counted(there) == counted(here)
    assert answered.landed() == rows
    assert answered.rejects == rejected
    assert (there.quarantined, there.unknown_lines, there.duplicate_lines) == (1, 1, 1)
    assert list((answered.root / "landed").iterdir()) == []


def test_what_was_sent_again_stands_in_its_place_in_whichever_part(
    kit: Any, answered: Any, tmp_path: Path
) -> None:
    good = kit.chat_body('{"intent": "billing", "urgent": false}')
    resent = [_again(kit, answered, tmp_path, [6, 8, 9, 11], good)]
    here = answered.land(kit.intent_job, resent=[resent])
    rows = answered.landed()
    assert [row["intent"] for row in rows if row["ticket_id"] in {6, 8, 9, 11}] == ["billing"] * 4

    there = land_on_spark(answered, kit.intent_job, resent=[resent])

    assert counted(there) == counted(here)
    assert answered.landed() == rows


@pytest.mark.parametrize("mode", ["replace_run", "append"])
def test_a_table_of_files_gets_those_of_the_tasks(
    kit: Any, answered: Any, tmp_path: Path, mode: Any
) -> None:
    from deltalake import DeltaTable

    here = answered.land(kit.intent_job)
    place = tmp_path / "delta"
    sink = open_sink(f"delta:{place}", None, Writing(mode))

    for again in (False, True):
        identity = replace(answered.identity, again=again)
        there = land_on_spark(answered, kit.intent_job, sink=sink, identity=identity)
        assert counted(there) == counted(here)

    table = DeltaTable(place)
    read = pa.table(table.to_pyarrow_table()).drop_columns(["_job"])
    assert sorted(map(str, read.to_pylist())) == sorted(map(str, answered.landed()))
    assert len(table.file_uris()) == len(answered.parts)
    assert list((answered.root / "landed").iterdir()) == []


def test_tasks_that_lack_rows_leave_a_table_of_files_as_it_was(
    kit: Any, answered: Any, tmp_path: Path
) -> None:
    sink = open_sink(f"delta:{tmp_path}/delta")
    parts = [replace(answered.parts[0], row_count=5), *answered.parts[1:]]

    with pytest.raises(LandingError, match="has 4 rows, and the run built 5"):
        land_on_spark(answered, kit.intent_job, parts=parts, sink=sink)

    assert list((tmp_path / "delta").glob("*.parquet")) == []


def _again(kit: Any, run_folder: Any, folder: Path, rows: list[int], body: Any) -> Any:
    """A round of rows of several parts, with a line that is nobody's."""
    import pyarrow.parquet as pq

    table = pa.concat_tables([
        pq.read_table(part.rows_path).filter(pa.compute.is_in(_rows(part), pa.array(rows)))
        for part in run_folder.parts
    ])
    lines = pa.array(range(len(rows)), pa.int64())
    pq.write_table(table.set_column(1, "_line", lines), folder / "again.parquet")
    artifact = folder / "again.jsonl"
    artifact.write_bytes(kit.encoded([*(kit.native(row, body) for row in rows), kit.native(77)]))
    return replace(
        run_folder.parts[0],
        rows_path=str(folder / "again.parquet"),
        row_count=len(rows),
        artifact_path=str(artifact),
        batch_id="batch_again",
    )


def _rows(part: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(part.rows_path).column("_row")


def test_a_part_that_lacks_rows_leaves_the_table_as_it_was(kit: Any, answered: Any) -> None:
    answered.land(kit.intent_job)
    before = json.dumps(answered.landed(), default=str)
    parts = [replace(answered.parts[0], row_count=5), *answered.parts[1:]]

    with pytest.raises(LandingError, match="has 4 rows, and the run built 5"):
        land_on_spark(answered, kit.intent_job, parts=parts)

    assert json.dumps(answered.landed(), default=str) == before
