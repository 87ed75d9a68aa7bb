"""A blocking job: one step buys, waits and lands; and what becomes of its partitions and errors."""

from pathlib import Path

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from dagster_batchrouter import (
    BatchrouterChecks,
    BatchrouterResource,
    BatchrouterTableIOManager,
    batchrouter_assets,
)

from batchrouter import Client
from batchrouter.errors import ConfigError, JobError
from on_dagster.conftest import (
    DAYS,
    MakeJob,
    batch_count,
    definitions,
    failure_of,
    launch,
    metadata_of,
    write_tickets,
)

DAY = "2026-11-03"
TABLE = "lake/labelled"


def test_a_range_of_partitions_is_bought_and_landed_by_one_step(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    client: Client,
) -> None:
    defs = definitions(
        make_job(),
        resource,
        mode="blocking",
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    keys = DAYS.get_partition_keys()[:3]
    tags = {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }

    for _ in range(2):  # the second buys nothing
        done = launch(defs, instance, TABLE, tags=tags)

    assert len(done.get_asset_materialization_events()) == 3
    told = [metadata_of(instance, TABLE, key)["batchrouter/run_key"] for key in keys]
    assert told == [f"lake/labelled:{key}" for key in keys]
    assert batch_count(client) == 3
    [accounted] = [
        each
        for each in done.get_asset_check_evaluations()
        if each.check_name == "every_row_accounted_for"
    ]
    assert accounted.metadata["rows"].value == 9


def test_inputs_get_the_table_as_what_they_ask_for(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    seen: dict[str, object] = {}

    def reader(kind: type, name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, ins={"table": dg.AssetIn(["lake", "labelled"])}, partitions_def=DAYS)
        def read(table) -> None:
            seen[name] = table

        read_typed = read.op.compute_fn.decorated_fn  # type: ignore[attr-defined]
        read_typed.__annotations__["table"] = kind
        return dg.asset(
            name=name, ins={"table": dg.AssetIn(["lake", "labelled"])}, partitions_def=DAYS
        )(read_typed)

    kinds = {
        "lazy": pl.LazyFrame,
        "frame": pl.DataFrame,
        "panda": pd.DataFrame,
        "arrow": pa.Table,
        "data": ds.Dataset,
    }

    @dg.asset(
        ins={"table": dg.AssetIn(["lake", "labelled"], metadata={"allow_missing_partitions": True})}
    )
    def whole(table: pl.DataFrame) -> None:
        seen["whole"] = table

    readers = [reader(kind, name) for name, kind in kinds.items()]
    defs = dg.Definitions.merge(
        definitions(
            make_job(),
            resource,
            mode="blocking",
            partitions_def=DAYS,
            io_manager_key="tables",
            more=[*readers, whole],
        ),
        dg.Definitions(resources={"tables": BatchrouterTableIOManager()}),
    )
    launch(defs, instance, TABLE, partition=DAY)
    launch(defs, instance, TABLE, partition="2026-11-04")

    for name in kinds:
        launch(defs, instance, name, partition=DAY)
    launch(defs, instance, "whole")

    for name, kind in kinds.items():
        assert isinstance(seen[name], kind)
    lazy, whole_table = seen["lazy"], seen["whole"]
    assert isinstance(lazy, pl.LazyFrame)
    assert isinstance(whole_table, pl.DataFrame)
    assert lazy.select("intent").collect().height == 3
    assert whole_table.height == 6


def test_a_partition_that_is_not_landed_is_not_read_as_empty(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    @dg.asset(ins={"table": dg.AssetIn(["lake", "labelled"])}, partitions_def=DAYS)
    def reads(table: pl.DataFrame) -> None: ...

    defs = dg.Definitions.merge(
        definitions(
            make_job(), resource, partitions_def=DAYS, io_manager_key="tables", more=[reads]
        ),
        dg.Definitions(resources={"tables": BatchrouterTableIOManager()}),
    )

    done = launch(defs, instance, "reads", partition=DAY, raise_on_error=False)

    [event] = [each for each in done.all_events if each.is_step_failure]
    assert "partition '2026-11-03' of lake/labelled is not landed" in str(
        event.step_failure_data.error
    )


def test_failed_rows_fail_the_check_and_keep_what_is_downstream_from_starting(
    make_job: MakeJob,
    resource: BatchrouterResource,
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> None:
    @dg.asset(deps=[dg.AssetKey(["lake", "labelled"])])
    def downstream() -> None:
        (tmp_path / "ran").touch()

    write_tickets(tmp_path / "tickets" / f"{DAY}.csv", DAY, rows=40)
    job = make_job(params={"day": DAY}, route={"models": ["half-fails"]})
    defs = definitions(
        job,
        resource,
        mode="blocking",
        checks=BatchrouterChecks(max_failed_share=0.1, blocking=True),
        more=[downstream],
    )

    done = launch(defs, instance, TABLE, "downstream", raise_on_error=False)

    checks = {each.check_name: each.passed for each in done.get_asset_check_evaluations()}
    assert checks["every_row_accounted_for"]
    assert not checks["failed_rows_within_limit"]
    told = metadata_of(instance, TABLE)
    assert told["batchrouter/rows_failed"] + told["batchrouter/rows_succeeded"] == 40
    assert "content_policy" in told["batchrouter/receipt"]
    assert not (tmp_path / "ran").exists()


def test_a_key_that_is_refused_fails_at_once_and_shows_no_key(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    wrong = "bk_live_" + "0" * 43
    defs = definitions(
        make_job(params={"day": DAY}),
        BatchrouterResource(**{**resource.model_dump(), "api_key": wrong}),
        mode="blocking",
        retry_policy=dg.RetryPolicy(max_retries=3),
    )

    done = launch(defs, instance, TABLE, raise_on_error=False)

    _, metadata = failure_of(done)
    assert metadata["batchrouter/error_code"] == "unauthorized"
    assert wrong not in str([str(each) for each in instance.all_logs(done.run_id)])


def test_a_router_that_is_not_there_is_a_matter_for_the_retry_policy(
    make_job: MakeJob, resource: BatchrouterResource, instance: dg.DagsterInstance
) -> None:
    defs = definitions(
        make_job(params={"day": DAY}),
        BatchrouterResource(**{
            **resource.model_dump(),
            "base_url": "http://127.0.0.1:9",
            "request_max_retries": 0,
        }),
        mode="blocking",
        retry_policy=dg.RetryPolicy(max_retries=2, delay=0.1),
    )

    done = launch(defs, instance, TABLE, raise_on_error=False)

    assert len([each for each in done.all_events if each.is_step_up_for_retry]) == 2


MULTI = dg.MultiPartitionsDefinition({
    "day": dg.DailyPartitionsDefinition(start_date="2026-11-01"),
    "land": dg.StaticPartitionsDefinition(["de", "fr"]),
})


def test_the_dimensions_of_a_partition_fill_the_parameters_of_their_names(
    make_job: MakeJob, tmp_path: Path
) -> None:
    from dagster_batchrouter.partitions import checked_params, params_of

    job = make_job(
        params={"day": None, "land": None},
        source=str(tmp_path / "${params.land}" / "${params.day}.csv"),
    )
    key = str(dg.MultiPartitionKey({"day": "2026-11-03", "land": "de"}))

    assert params_of(MULTI, checked_params(job, MULTI, None), key) == {
        "day": "2026-11-03",
        "land": "de",
    }
    templates = checked_params(job, MULTI, {"day": "{start:%Y/%m/%d}", "land": "{land}"})
    assert params_of(MULTI, templates, key) == {"day": "2026/11/03", "land": "de"}


@pytest.mark.parametrize(
    ("partition_params", "told"),
    [
        ({"dya": "{key}"}, "declares no such parameter; it has day"),
        ({"day": "{kye}"}, "{kye} is unknown; there is {key}"),
        ({"day": "{start}"}, "{start} is unknown"),
    ],
)
def test_a_wrong_template_is_found_when_definitions_load(
    make_job: MakeJob, partition_params: dict[str, str], told: str
) -> None:
    with pytest.raises(JobError, match=told.replace("{", r"\{")):
        batchrouter_assets(job=make_job(), partitions_def=DAYS, partition_params=partition_params)


def test_which_parameter_takes_the_partition_must_be_clear(make_job: MakeJob) -> None:
    with pytest.raises(JobError, match="which parameter of job 'label-tickets'"):
        batchrouter_assets(job=make_job(params={"day": "today"}), partitions_def=DAYS)
    with pytest.raises(ConfigError, match="mode: 'later' is unknown"):
        batchrouter_assets(job=make_job(), mode="later")  # type: ignore[arg-type]


def test_a_changed_prompt_has_another_code_version_and_another_budget_has_not(
    make_job: MakeJob,
) -> None:
    from dagster_batchrouter.translator import code_version

    versions = {
        name: code_version(make_job(**changes))
        for name, changes in {
            "as it is": {},
            "budget": {"budget": "2.00"},
            "prompt": {"request": {"kind": "chat", "user": "Hello {body}"}},
        }.items()
    }

    assert versions["as it is"] == versions["budget"] != versions["prompt"]
