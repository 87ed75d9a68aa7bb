"""The same build and landing over Spark Connect, whose client has no JVM of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from batchrouter import Run
from batchrouter.manifest.built import BuiltManifest
from batchrouter.testing import running_router
from on_spark.tables import built_here, job_of, landed, lines_of, snapshot_of, tickets

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(1500)]

BEGIN = """
import json, os, sys
from pathlib import Path
from pyspark.sql import SparkSession
sys.path.insert(0, {tests!r})
from on_spark.tables import job_of

builder = SparkSession.builder.remote("local[2]")
for name, value in {settings!r}.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
assert "connect" in type(spark).__module__, type(spark)
frame = spark.read.parquet({source!r}).repartition(3)
"""
BUILD = """
from batchrouter.errors import DuplicateKeyError
from batchrouter.spark import build_manifest

job = job_of({source!r})
built = build_manifest(frame, job, {folder!r})
try:
    build_manifest(frame.union(frame), job, {folder!r})
except DuplicateKeyError as error:
    refused = str(error)
print(json.dumps({{"built": built.to_dict(), "refused": refused}}))
spark.stop()
"""
RUN = """
from batchrouter import Run

told = []
for key, sink in (("rows", {folder!r} + "/rows"), ("lake", "delta:" + {folder!r} + "/lake")):
    with Run.open(job_of(frame, sink=sink), run_key=key) as run:
        told.append(run.execute(timeout_s=600).rows)
print(json.dumps(told))
spark.stop()
"""


def ran_over_connect(program: str, tmp_path: Path, source: Path, **more: str) -> Any:
    """Run a program in a process of its own, and give what it prints last.

    Once a process has spoken to a JVM, PySpark takes it for no client of Spark Connect.
    """
    given: dict[str, Any] = {
        "tests": str(Path(__file__).parents[1]),
        "source": str(source),
        "folder": str(tmp_path / "there"),
        "settings": {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.local.dir": str(tmp_path / "local"),
            "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        },
    }
    done = subprocess.run(
        [sys.executable, "-c", (BEGIN + program).format(**given)],
        cwd=tmp_path,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_build_over_connect_is_that_of_one_machine(
    spark_environment: None, tmp_path: Path
) -> None:
    source = tmp_path / "tickets.parquet"
    pq.write_table(tickets(1_000), source)

    told = ran_over_connect(BUILD, tmp_path, source)

    there = BuiltManifest.from_dict(told["built"])
    job = job_of(str(source))
    here = built_here(job, tmp_path / "here")
    assert lines_of(tmp_path / "there", there) == lines_of(tmp_path / "here", here)
    assert snapshot_of(tmp_path / "there", there) == snapshot_of(tmp_path / "here", here)
    assert "in 2 rows" in told["refused"]


def test_a_run_over_connect_lands_the_rows_of_one_machine(
    spark_environment: None, tmp_path: Path
) -> None:
    source = tmp_path / "tickets.parquet"
    pq.write_table(tickets(1_000), source)
    with running_router(tmp_path / "router") as router:
        settings = router.settings(runs_url=str(tmp_path / "runs"))
        job = job_of(str(source), sink=str(tmp_path / "here"))
        with Run.open(job, run_key="here", settings=settings) as run:
            here = run.execute(timeout_s=300).rows

        told = ran_over_connect(
            RUN,
            tmp_path,
            source,
            BATCHROUTER_BASE_URL=router.base_url,
            BATCHROUTER_API_KEY=router.api_key,
            BATCHROUTER_RUNS_URL=str(tmp_path / "runs"),
        )

    assert told == [here, here]
    dropped = ["_run_key"]
    ours = landed(tmp_path / "here").drop_columns(dropped)
    assert landed(tmp_path / "there" / "rows").drop_columns(dropped) == ours
    lake = pa.table(DeltaTable(tmp_path / "there" / "lake").to_pyarrow_table())
    theirs = lake.select(ours.column_names).cast(ours.schema)
    order = [(name, "ascending") for name in ours.column_names[:2]]
    assert theirs.sort_by(order).to_pylist() == ours.to_pylist()
