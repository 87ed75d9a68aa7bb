"""Two landings of one run at a time: an orphan and its successor, and what a dead one left."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import open_sink

IDENTITY = LandingIdentity("label", "2026-11-22", "2026-11-22-0a1b2c")
SCHEMA = pa.schema({"n": pa.int64()})


def rows() -> pa.RecordBatch:
    return pa.record_batch({"n": [1, 2, 3]}, schema=SCHEMA)


def test_both_commit_the_same_rows(tmp_path: Path) -> None:
    both_write = threading.Barrier(2)
    failures: list[BaseException] = []

    def land() -> None:
        def batches() -> Iterator[pa.RecordBatch]:
            both_write.wait(10)
            yield rows()

        try:
            open_sink(str(tmp_path / "table")).write(batches(), SCHEMA, IDENTITY)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=land) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    [landed] = (tmp_path / "table").rglob("*.parquet")
    assert pq.read_table(landed).column("n").to_pylist() == [1, 2, 3]
    assert not list(tmp_path.glob(".table.staging"))


def test_what_a_dead_landing_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".table.staging" / "label--2026-11-22-0a1b2c" / "dead.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")

    open_sink(str(tmp_path / "table")).write(iter([rows()]), SCHEMA, IDENTITY)

    assert not left.exists()
