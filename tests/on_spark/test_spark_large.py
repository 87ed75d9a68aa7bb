"""Two million rows, built and landed on the cluster and in one process: the same lines and rows."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow.parquet as pq
import pytest
import xxhash

from batchrouter.job import Chat, Job
from batchrouter.landing.land import land_parts
from batchrouter.landing.report import LandingIdentity, LandingReport, PartToLand
from batchrouter.landing.sinks import open_sink
from batchrouter.manifest.built import BuiltManifest
from batchrouter.spark import build_manifest
from batchrouter.spark.landing import landed_on_spark
from benchmarks.answers import OUTPUT, answer
from benchmarks.tickets import make_table
from on_spark.tables import built_here, job_of

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(1700)]
ROWS = int(os.environ.get("BATCHROUTER_DRILL_ROWS", "2000000"))
PARTITIONS = 6
FILES = fsspec.filesystem("file")


def large_job(source: Any) -> Job:
    request = Chat(user="{body}", output=OUTPUT, parameters={"max_output_tokens": 64})
    return job_of(source, key="id", keep=["subject"], request=request)


def sum_of_lines(folder: Path, built: BuiltManifest) -> tuple[int, int]:
    """How many lines, and their hashes added up: the same for any order and any cut."""
    count = total = 0
    for part in built.parts:
        with (folder / "manifest" / part.manifest_path).open("rb") as file:
            for line in file:
                count += 1
                total += xxhash.xxh3_128_intdigest(line)
    return count, total % 2**128


def sum_of_rows(files: str, dropped: str) -> tuple[Any, ...]:
    """As `sum_of_lines`, of the rows of Parquet files without some columns."""
    with duckdb.connect(config={"memory_limit": "1GB", "threads": 2}) as connection:
        found = connection.execute(
            f"select count(*), sum(hash(t)::hugeint), bit_xor(hash(t)) from (select * exclude"
            f" ({dropped}) from read_parquet('{files}')) t"
        ).fetchone()
    assert found is not None
    return found


def parts_of(folder: Path, built: BuiltManifest) -> Iterator[PartToLand]:
    for part in built.parts:
        artifact = folder / f"artifact-{part.index}.jsonl"
        rows = folder / "rows" / part.rows_path
        answer(rows, artifact)
        yield PartToLand(part.index, str(rows), part.row_count, str(artifact), "batch_0")


def counts_of(report: LandingReport) -> dict[str, Any]:
    told = report.to_dict()
    return {
        name: told[name]
        for name in told
        if name not in {"duration_s", "location", "bytes", "parts"}
    }


def test_two_million_rows_are_the_lines_and_rows_of_one_machine(spark: Any, tmp_path: Path) -> None:
    source = tmp_path / "tickets.parquet"
    make_table(source, ROWS, is_short=True)
    here, there = tmp_path / "here", tmp_path / "there"
    built = built_here(large_job(str(source)), here)
    frame = spark.read.parquet(str(source)).repartition(PARTITIONS)

    spread = build_manifest(frame, large_job(frame), str(there))

    assert len(spread.parts) == PARTITIONS
    assert spread.item_count == built.item_count == ROWS
    assert sum_of_lines(there, spread) == sum_of_lines(here, built)
    dropped = "_row, _line"
    rows_here = sum_of_rows(f"{here}/rows/*.parquet", dropped)
    assert sum_of_rows(f"{there}/rows/*.parquet", dropped) == rows_here

    identity = LandingIdentity("large", "run", "run-0")
    for folder in (here, there):
        for name in ("rejects", "landed"):
            (folder / name).mkdir()
    given: dict[str, Any] = {"fs": FILES, "identity": identity, "token": "large"}
    one = land_parts(
        large_job(str(source)), parts=list(parts_of(here, built)), rejects_dir=f"{here}/rejects",
        sink=open_sink(f"{here}/table"), **given,
    )  # fmt: skip
    many = landed_on_spark(
        large_job(str(source)), spark=spark, parts=list(parts_of(there, spread)),
        rejects_dir=f"{there}/rejects", landed_dir=f"{there}/landed",
        sink=open_sink(f"delta:{there}/lake"), **given,
    )  # fmt: skip

    assert counts_of(many) == counts_of(one)
    assert one.rows == ROWS
    files = [pq.read_metadata(path).num_rows for path in (there / "lake").glob("*.parquet")]
    assert len(files) == PARTITIONS
    landed = sum_of_rows(f"{here}/table/**/*.parquet", "_batch_id")
    assert sum_of_rows(f"{there}/lake/*.parquet", "_batch_id, _job") == landed
