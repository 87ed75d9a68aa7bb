"""A table that lies on a Spark cluster, as a daily partitioned asset of Dagster."""

from pathlib import Path

import dagster as dg
from dagster_batchrouter import (
    BatchrouterResource,
    batchrouter_assets,
    build_batchrouter_cancel_sensor,
    build_batchrouter_sensor,
)

defs = dg.Definitions(
    assets=batchrouter_assets(
        job=Path(__file__).with_name("label_tickets.yaml"),
        key="labelled_tickets",
        partitions_def=dg.DailyPartitionsDefinition(start_date="2026-11-01"),
    ),
    sensors=[build_batchrouter_sensor(), build_batchrouter_cancel_sensor()],
    resources={"batchrouter": BatchrouterResource(api_key=dg.EnvVar("BATCHROUTER_API_KEY"))},
)
