"""A manifest built by two executors is that of one machine: the same lines and the same rows."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchrouter.errors import ConfigError, DuplicateKeyError, ManifestError, NullKeyError
from batchrouter.spark import build_manifest
from batchrouter.spark.session import session_of
from on_spark.tables import built_here, files_in, job_of, lines_of, snapshot_of, tickets

pytestmark = pytest.mark.xdist_group("spark")
ROWS = 4_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tickets.parquet"
    pq.write_table(tickets(ROWS), path)
    return path


def test_lines_and_rows_are_those_of_one_machine_however_the_table_is_parted(
    spark: Any, source: Path, tmp_path: Path
) -> None:
    frame = spark.read.parquet(str(source))
    # One partition has nearly all rows, some have few, and some none.
    skewed = frame.repartition(5, "shop").unionByName(frame.limit(0).repartition(2))
    job = job_of(str(source), parts={"max_items": 1_500})
    here = built_here(job, tmp_path / "here")

    there = build_manifest(skewed, job, str(tmp_path / "there"))

    assert lines_of(tmp_path / "there", there) == lines_of(tmp_path / "here", here)
    assert snapshot_of(tmp_path / "there", there) == snapshot_of(tmp_path / "here", here)
    assert (there.row_count, there.item_count, there.skipped_count) == (
        here.row_count,
        here.item_count,
        here.skipped_count,
    )
    assert there.max_output_tokens == here.max_output_tokens == 32
    assert [part.index for part in there.parts] == list(range(len(there.parts)))
    assert max(part.item_count for part in there.parts) <= 1_500
    for part in there.parts:
        lines = (tmp_path / "there" / "manifest" / part.manifest_path).read_bytes()
        assert (hashlib.sha256(lines).hexdigest(), len(lines)) == (part.sha256, part.bytes)
    assert len(files_in(tmp_path / "there" / "rows")) == len(there.parts)


def test_a_table_without_rows_is_one_empty_part(spark: Any, source: Path, tmp_path: Path) -> None:
    built = build_manifest(
        spark.read.parquet(str(source)).where("shop > 99"), job_of(str(source)), str(tmp_path)
    )

    assert [(part.item_count, part.row_count) for part in built.parts] == [(0, 0)]


def test_a_key_in_two_partitions_is_named_and_nothing_is_kept(
    spark: Any, source: Path, tmp_path: Path
) -> None:
    frame = spark.read.parquet(str(source))
    twice = frame.unionByName(frame.where("ticket_id = 'T-000007'"))

    with pytest.raises(DuplicateKeyError, match=r"shop=0, ticket_id='T-000007' in 2 rows"):
        build_manifest(twice, job_of(str(source)), str(tmp_path))

    assert files_in(tmp_path / "manifest") == files_in(tmp_path / "rows") == set()


NULL_KEY = ("if(ticket_id = 'T-000009', NULL, ticket_id)", "skip", NullKeyError)
NULL_BODY = ("ticket_id", "error", ManifestError)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (NULL_KEY, r"'ticket_id' is NULL.*this one has shop=2, ticket_id=None"),
        (NULL_BODY, r"the request needs it.*Spark partition 0; .* shop=3, ticket_id='T-000003'"),
    ],
    ids=["null key", "null body"],
)
def test_a_bad_row_is_named_by_place_and_key(
    spark: Any, source: Path, tmp_path: Path, bad: Any, told: str
) -> None:
    ticket_id, on_null, error = bad
    frame = spark.read.parquet(str(source)).selectExpr(
        f"{ticket_id} AS ticket_id", "shop", "body", "at", "amount"
    )
    job = job_of(str(source), on_null=on_null)

    with pytest.raises(error, match=told):
        build_manifest(frame.coalesce(1), job, str(tmp_path))

    assert files_in(tmp_path / "manifest") == set()


def test_without_java_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(ConfigError, match="Spark needs Java 17"):
        session_of(job_of("tickets.parquet", engine="spark:local[2]"))


def test_what_only_one_machine_does_is_refused_when_the_job_is_made() -> None:
    with pytest.raises(ConfigError, match="dedupe: Spark finds no equal requests"):
        job_of("tickets.parquet", engine="spark", dedupe=True)
    with pytest.raises(ConfigError, match="source: Spark reads Parquet by path"):
        job_of("tickets.csv", engine="spark")
    with pytest.raises(ConfigError, match="engine: holds a token"):
        job_of("tickets.parquet", engine="spark:sc://host:15002/;token=abc")
