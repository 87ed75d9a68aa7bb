"""Whole jobs into each kind of table: bought, landed, left alone when nothing changed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter import Job, Receipt, Run, Settings
from batchrouter.errors import BatchFailedError, SinkError
from batchrouter.testing import RunningRouter, running_router
from core.sinks.kinds import Kind

LANE: dict[str, Any] = {
    "provider": "simulated-flaky",
    "region": "eu",
    "capacity_items": 100_000,
    "models": [{"name": "m", "input_usd_per_mtok": "0.1", "output_usd_per_mtok": "0.4"}],
    "options": {"failure_rate": 0.2},
}
SURE_LANE = {
    **LANE,
    "provider": "simulated-sure",
    "models": [{**LANE["models"][0], "name": "sure"}],
    "options": {},
}
ROWS = 60


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(
        tmp_path_factory.mktemp("router"), config={"lanes": [LANE, SURE_LANE]}
    ) as running:
        yield running


class Desk:
    def __init__(self, kind: Kind, router: RunningRouter, **fields: Any) -> None:
        self.kind = kind
        self.settings = Settings(
            base_url=router.base_url, api_key=router.api_key, poll_interval_s=0.1,
            runs_url=str(kind.root / "runs"), namespace=str(kind.root),
        )  # fmt: skip
        self.fields = fields

    def run(self, key: str, texts: list[str], **fields: Any) -> Receipt:
        table = pa.table({"id": [f"k{n}" for n in range(len(texts))], "text": texts})
        pq.write_table(table, self.kind.root / "in.parquet")
        job = Job.model_validate({
            "name": "label", "source": str(self.kind.root / "in.parquet"), "key": "id",
            "keep": "text",
            "request": {
                "kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 32},
                "output": {"intent": {"type": "string", "enum": ["card", "fees"]},
                           "tags": {"type": "array", "items": {"type": "string"}}},
            },
            "route": {"models": ["m"]}, "budget": 1, "sink": self.kind.url, **self.fields, **fields,
        })  # fmt: skip
        with Run.open(job, run_key=key, settings=self.settings) as run:
            return run.execute(timeout_s=60)


def _texts(changed: int = 0, rows: int = ROWS) -> list[str]:
    return [f"My card {n % 20} is late{' again' * (n < changed)}" for n in range(rows)]


@pytest.mark.parametrize("dedupe", [False, True])
def test_incremental_buys_what_the_table_lacks(
    kind: Kind, router: RunningRouter, *, dedupe: bool
) -> None:
    desk = Desk(kind, router, mode="merge", incremental=True, dedupe=dedupe)
    first = desk.run("monday", _texts())
    statuses = Counter(row["_status"] for row in kind.read())
    assert first.row_count == ROWS == statuses.total()
    assert 0 < statuses["succeeded"] < ROWS

    again = desk.run("tuesday", _texts(changed=5, rows=ROWS + 3))

    landed = kind.read()
    fresh = [row for row in landed if row["_run_key"] == "tuesday"]
    assert len(landed) == len({row["id"] for row in landed}) == ROWS + 3
    assert again.row_count == len(fresh) < ROWS
    assert {f"k{n}" for n in [*range(5), *range(ROWS, ROWS + 3)]} <= {row["id"] for row in fresh}
    assert all(row["text"].endswith("again") == (int(row["id"][1:]) < 5) for row in landed)


def test_the_rounds_of_an_incremental_job_land_one_table(kind: Kind, router: RunningRouter) -> None:
    desk = Desk(kind, router, mode="merge", incremental=True, retry_failed=3)
    texts = _texts()

    first = desk.run("monday", texts)

    landed = kind.read()
    statuses = Counter(row["_status"] for row in landed)
    assert len(landed) == len({row["id"] for row in landed}) == ROWS == first.row_count
    assert statuses == +Counter(first.rows)
    assert first.rounds[0].items == ROWS
    assert len(first.rounds) >= 2
    assert first.rounds[1].items < ROWS

    # The lane fails the same rows always: nothing else is bought, and nothing is landed for them.
    with pytest.raises(BatchFailedError, match=f"none of {statuses['failed']} items succeeded"):
        desk.run("tuesday", texts)
    assert sorted(map(str, kind.read())) == sorted(map(str, landed))


def test_a_table_without_a_change_buys_nothing(kind: Kind, router: RunningRouter) -> None:
    desk = Desk(kind, router, mode="merge", incremental=True, route={"models": ["sure"]})
    texts = _texts()
    desk.run("monday", texts)
    before = kind.read()

    receipt = desk.run("nothing new", texts)

    assert receipt.unchanged == ROWS
    assert not receipt.batch_ids
    assert sorted(map(str, kind.read())) == sorted(map(str, before))


def test_other_columns_are_refused_before_anything_is_bought(
    kind: Kind, router: RunningRouter
) -> None:
    desk = Desk(kind, router)
    desk.run("monday", _texts(rows=5))

    with pytest.raises(SinkError, match=r"text .* is only in the table"):
        desk.run("tuesday", _texts(rows=5), keep=[])

    run = Path(next(kind.root.glob("runs/*/tuesday*")))
    assert not list(run.glob("journal/*-intended.json"))
    assert len(kind.read()) == 5
    desk.run("tuesday", _texts(rows=5), keep=[], evolve=True)
    assert Counter(row["text"] is None for row in kind.read()) == {True: 5, False: 5}
