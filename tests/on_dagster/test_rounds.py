"""Retry rounds of a deferred job: each is bought by a run that the sensor launches."""

from pathlib import Path

import dagster as dg
from dagster_batchrouter import BatchrouterResource

from batchrouter import Client
from on_dagster.conftest import (
    DAYS,
    MakeJob,
    Ticking,
    batch_count,
    definitions,
    launch,
    metadata_of,
    write_tickets,
)

DAY = "2026-11-03"


def test_a_round_is_bought_by_one_landing_run_and_landed_by_the_next(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
    tmp_path: Path,
) -> None:
    write_tickets(tmp_path / "tickets" / f"{DAY}.csv", DAY, rows=20)
    job = make_job(route={"models": ["half-fails"]}, retry_failed=1)
    defs = definitions(job, resource, partitions_def=DAYS)
    ticking = Ticking(defs, instance)
    launch(defs, instance, "lake/labelled_submission", partition=DAY)

    first = ticking.launch(*ticking.until(1))
    second = ticking.launch(*ticking.until(1))

    assert first.success
    assert first.get_asset_materialization_events() == []
    assert len(second.get_asset_materialization_events()) == 1
    assert batch_count(client) == 2
    told = metadata_of(instance, "lake/labelled", DAY)
    assert told["dagster/partition_row_count"] == 20
    assert len(told["batchrouter/batch_ids"]) == 2
