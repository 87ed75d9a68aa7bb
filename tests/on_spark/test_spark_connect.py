"""The same build over Spark Connect, whose client has no JVM of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchrouter.manifest.built import BuiltManifest
from on_spark.tables import built_here, job_of, lines_of, snapshot_of, tickets

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("spark"), pytest.mark.timeout(1500)]

PROGRAM = """
import json, sys
from pathlib import Path
from pyspark.sql import SparkSession
sys.path.insert(0, {tests!r})
from on_spark.tables import job_of
from batchrouter.errors import DuplicateKeyError
from batchrouter.spark import build_manifest
from batchrouter.spark.tasks import each

builder = SparkSession.builder.remote("local[2]")
for name, value in {settings!r}.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
assert "connect" in type(spark).__module__, type(spark)
job = job_of({source!r})
frame = spark.read.parquet({source!r}).repartition(3)
built = build_manifest(frame, job, {folder!r})
try:
    build_manifest(frame.union(frame), job, {folder!r})
except DuplicateKeyError as error:
    refused = str(error)
print(json.dumps({{"built": built.to_dict(), "refused": refused}}))
spark.stop()
"""


def test_a_build_over_connect_is_that_of_one_machine(
    spark_environment: None, tmp_path: Path
) -> None:
    source = tmp_path / "tickets.parquet"
    pq.write_table(tickets(1_000), source)
    program = PROGRAM.format(
        tests=str(Path(__file__).parents[1]),
        source=str(source),
        folder=str(tmp_path / "there"),
        settings={
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.local.dir": str(tmp_path / "local"),
            "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        },
    )

    # Once a process has spoken to a JVM, PySpark takes it for no client of Spark Connect.
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    there = BuiltManifest.from_dict(told["built"])
    job = job_of(str(source))
    here = built_here(job, tmp_path / "here")
    assert lines_of(tmp_path / "there", there) == lines_of(tmp_path / "here", here)
    assert snapshot_of(tmp_path / "there", there) == snapshot_of(tmp_path / "here", here)
    assert "in 2 rows" in told["refused"]
