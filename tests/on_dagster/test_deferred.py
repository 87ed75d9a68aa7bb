"""A deferred job: the submission takes seconds, the sensor lands the table once it can."""

from pathlib import Path

import dagster as dg
import pyarrow.dataset as ds
import pytest
from dagster_batchrouter import BatchrouterChecks, BatchrouterResource

from batchrouter import Client
from on_dagster.conftest import (
    DAYS,
    MakeJob,
    Ticking,
    batch_count,
    definitions,
    failure_of,
    launch,
    metadata_of,
    write_tickets,
)

DAY = "2026-11-03"
SUBMISSION, TABLE = "lake/labelled_submission", "lake/labelled"


def statuses(folder: str) -> list[str]:
    return ds.dataset(folder, format="parquet").to_table().column("_status").to_pylist()


def test_the_sensor_lands_what_was_submitted_with_its_metadata_and_checks(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    job = make_job()
    defs = definitions(job, resource, partitions_def=DAYS)
    launch(defs, instance, SUBMISSION, partition=DAY)
    ticking = Ticking(defs, instance)

    [request] = ticking.until(1)
    landed = ticking.launch(request)

    assert request.partition_key == DAY
    assert request.asset_selection == [dg.AssetKey(["lake", "labelled"])]
    assert statuses(job.sink) == ["succeeded"] * 3
    assert batch_count(client) == 1
    told = metadata_of(instance, TABLE, DAY)
    assert told["dagster/partition_row_count"] == told["batchrouter/rows_succeeded"] == 3
    assert 0 < told["batchrouter/settled_usd"] <= told["batchrouter/quoted_usd"]
    assert told["batchrouter/run_key"] == f"lake/labelled:{DAY}"
    columns = {each.name: each.type for each in told["dagster/column_schema"].columns}
    assert (columns["urgent"], columns["_cost_usd"]) == ("bool", "decimal128(38, 12)")
    assert "succeeded | 3" in told["batchrouter/receipt"]
    assert landed.get_asset_check_evaluations()
    assert {each.check_name: each.passed for each in landed.get_asset_check_evaluations()} == {
        "every_row_accounted_for": True,
        "failed_rows_within_limit": True,
        "settled_within_quote": True,
        "no_schema_drift": True,
    }
    assert ticking.tick() == []


def test_the_submission_tells_what_it_bought(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS)

    launch(defs, instance, SUBMISSION, partition=DAY)

    told = metadata_of(instance, SUBMISSION, DAY)
    assert told["batchrouter/items"] == 3
    assert len(told["batchrouter/batch_ids"]) == 1
    assert told["batchrouter/committed_usd"] == told["batchrouter/quoted_usd"] > 0
    assert "at most for 3 requests (budget $1.00)" in told["batchrouter/quote"]
    assert told["batchrouter/batch"].startswith("http://127.0.0.1")


def test_submitting_again_buys_nothing_and_is_no_new_data(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS)

    versions = set[str]()
    for _ in range(3):
        done = launch(defs, instance, SUBMISSION, partition=DAY)
        [event] = done.get_asset_materialization_events()
        versions.add(event.materialization.tags["dagster/data_version"])

    assert batch_count(client) == 1
    assert len(versions) == 1


def test_the_rebuy_tag_buys_anew_and_replaces_the_rows(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    job = make_job()
    defs = definitions(job, resource, partitions_def=DAYS)
    ticking = Ticking(defs, instance)
    launch(defs, instance, SUBMISSION, partition=DAY)
    ticking.launch(*ticking.until(1))
    before = metadata_of(instance, TABLE, DAY)

    launch(defs, instance, SUBMISSION, partition=DAY, tags={"batchrouter/rebuy": "true"})
    ticking.launch(*ticking.until(1))

    assert batch_count(client) == 2
    assert statuses(job.sink) == ["succeeded"] * 3
    told = metadata_of(instance, TABLE, DAY)
    assert told["batchrouter/settled_usd"] == pytest.approx(2 * before["batchrouter/settled_usd"])


def test_the_table_alone_fails_without_retry_and_says_what_to_materialize(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS)

    message, _ = failure_of(launch(defs, instance, TABLE, partition=DAY, raise_on_error=False))

    assert "No batch was submitted for partition '2026-11-03'" in message
    assert "Materialize lake/labelled_submission" in message


def test_both_in_one_run_wait_inline(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    job = make_job()
    defs = definitions(job, resource, partitions_def=DAYS)

    done = launch(defs, instance, SUBMISSION, TABLE, partition=DAY)

    assert len(done.get_asset_materialization_events()) == 2
    assert statuses(job.sink) == ["succeeded"] * 3


def test_without_partitions_each_launch_is_a_run(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    defs = definitions(make_job(params={"day": DAY}), resource)
    ticking = Ticking(defs, instance)
    first, second = (launch(defs, instance, SUBMISSION) for _ in range(2))

    requests = ticking.until(2)
    for request in requests:
        ticking.launch(request)

    wanted = {f"lake/labelled:{each.run_id}" for each in (first, second)}
    assert {each.tags["batchrouter/run_key"] for each in requests} == wanted
    assert batch_count(client) == 2
    assert Ticking(defs, instance).tick() == [], "a sensor that begins anew lands nothing again"


def test_a_day_without_rows_is_landed_without_a_batch(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS)
    write_tickets(tmp_path / "tickets" / f"{DAY}.csv", DAY, rows=0)
    launch(defs, instance, SUBMISSION, partition=DAY)
    ticking = Ticking(defs, instance)

    ticking.launch(*ticking.tick())

    assert metadata_of(instance, TABLE, DAY)["dagster/partition_row_count"] == 0
    assert ticking.tick() == []


def test_a_single_run_backfill_submits_each_partition_and_lands_each(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    job = make_job()
    single_run = dg.BackfillPolicy.single_run()
    defs = definitions(job, resource, partitions_def=DAYS, backfill_policy=single_run)
    keys = DAYS.get_partition_keys()[:4]
    tags = {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }

    done = launch(defs, instance, SUBMISSION, tags=tags)
    ticking = Ticking(defs, instance)
    for request in ticking.until(4):
        ticking.launch(request)

    assert len(done.get_asset_materialization_events()) == 4
    told = [metadata_of(instance, SUBMISSION, key)["batchrouter/run_key"] for key in keys]
    assert told == [f"lake/labelled:{key}" for key in keys]
    assert batch_count(client) == 4
    assert statuses(job.sink) == ["succeeded"] * 12


def test_a_changed_prompt_of_a_bought_partition_is_refused_and_says_how_to_go_on(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS)
    launch(defs, instance, SUBMISSION, partition=DAY)
    changed = make_job(request={"kind": "chat", "user": "Hello {body}"})

    other = definitions(changed, resource, partitions_def=DAYS)
    done = launch(other, instance, SUBMISSION, partition=DAY, raise_on_error=False)

    message, metadata = failure_of(done)
    assert "bought with another request" in message
    assert "batchrouter/rebuy: true" in message
    assert metadata["batchrouter/error_code"] == "run_identity_conflict"
    assert batch_count(client) == 1


def test_a_quote_above_the_budget_buys_nothing_and_is_not_retried(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    defs = definitions(make_job(budget="0.000001"), resource, partitions_def=DAYS)

    done = launch(defs, instance, SUBMISSION, partition=DAY, raise_on_error=False)

    _, metadata = failure_of(done)
    assert metadata["batchrouter/error_code"] == "budget_exceeded"
    run = instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags["batchrouter/final_error"] == "budget_exceeded"
    assert batch_count(client) == 0


def test_checks_alone_judge_the_landed_table_again(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    checks = BatchrouterChecks(blocking=True)
    defs = definitions(make_job(params={"day": DAY}), resource, checks=checks)
    launch(defs, instance, SUBMISSION, TABLE)
    selection = dg.AssetSelection.checks_for_assets(dg.AssetKey(TABLE.split("/")))
    job = dg.define_asset_job("checks", selection=selection)

    with_job = dg.Definitions.merge(defs, dg.Definitions(jobs=[job]))
    done = with_job.resolve_job_def("checks").execute_in_process(instance=instance)

    assert done.get_asset_materialization_events() == []
    assert [each.passed for each in done.get_asset_check_evaluations()] == [True] * 4


@pytest.mark.parametrize("is_final", [False, True])
def test_a_landing_that_failed_is_launched_again_unless_nothing_would_cure_it(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    *,
    is_final: bool,
) -> None:
    defs = definitions(make_job(), resource, partitions_def=DAYS, quiet_seconds=0)
    ticking = Ticking(defs, instance)
    launch(defs, instance, SUBMISSION, partition=DAY)
    [request] = ticking.until(1)
    final = {"batchrouter/final_error": "sink_error"} if is_final else {}
    instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        tags={**request.tags, **final},
        status=dg.DagsterRunStatus.FAILURE,
    )

    again = ticking.tick()

    if is_final:
        assert again == []
        return
    [second] = again
    assert (second.run_key, second.partition_key) == (f"{request.run_key}:again-1", DAY)
    ticking.launch(second)
    assert ticking.tick() == []
