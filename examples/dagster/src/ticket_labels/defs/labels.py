"""Tickets of a day → their labels → a report."""

from pathlib import Path

import dagster as dg
import polars as pl
from dagster_batchrouter import (
    BatchrouterChecks,
    BatchrouterResource,
    BatchrouterTableIOManager,
    batchrouter_assets,
    build_batchrouter_cancel_sensor,
    build_batchrouter_sensor,
)

DAYS = dg.DailyPartitionsDefinition(start_date="2026-11-01")

labels = batchrouter_assets(
    job=Path(__file__).with_name("label_tickets.yaml"),
    key="tickets_labelled",
    partitions_def=DAYS,
    group_name="tickets",
    checks=BatchrouterChecks(max_failed_share=0.05, blocking=True),
    io_manager_key="landed_tables",
)


@dg.asset(
    partitions_def=DAYS,
    group_name="tickets",
    automation_condition=dg.AutomationCondition.eager(),
)
def intents_by_day(tickets_labelled: pl.LazyFrame) -> dg.MaterializeResult:
    """How many tickets of a day have which intent."""
    counts = tickets_labelled.group_by("intent").len().sort("len", descending=True).collect()
    rows = [f"| {row['intent']} | {row['len']} |" for row in counts.to_dicts()]
    table = "\n".join(["| intent | tickets |", "| --- | ---: |", *rows])
    return dg.MaterializeResult(
        metadata={"tickets": int(counts["len"].sum()), "counts": dg.MetadataValue.md(table)}
    )


defs = dg.Definitions(
    assets=[*labels, intents_by_day],
    # One sensor lands all deferred tables of the project, those of components too.
    sensors=[build_batchrouter_sensor(), build_batchrouter_cancel_sensor()],
    resources={
        "batchrouter": BatchrouterResource(
            api_key=dg.EnvVar("BATCHROUTER_API_KEY"), runs_url="data/runs"
        ),
        "landed_tables": BatchrouterTableIOManager(),
    },
)
