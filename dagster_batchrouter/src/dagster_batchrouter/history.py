"""What Dagster's own event log knows of earlier submissions and landings."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_batchrouter import metadata as told
from dagster_batchrouter.plan import RUN_KEY_TAG, JobPlan

_NEWEST = 50
"""So many submissions are looked through for the one of this Dagster run."""


def run_key_to_land(
    plan: JobPlan, context: dg.AssetExecutionContext, partition: str | None
) -> str | None:
    """The batchrouter run that a step shall land; None when there was no submission."""
    run = context.run
    if partition is not None:
        return plan.run_key(partition, "")
    if RUN_KEY_TAG in run.tags:
        return run.tags[RUN_KEY_TAG]
    if plan.submission_key is None:
        return None
    records = context.instance.fetch_materializations(plan.submission_key, limit=_NEWEST).records
    own = {run.run_id, run.root_run_id, run.parent_run_id}
    newest = next((each for each in records if each.run_id in own), records[0] if records else None)
    return text_of(newest, told.RUN_KEY) if newest is not None else None


def last_columns(plan: JobPlan, context: dg.AssetExecutionContext) -> Mapping[str, str] | None:
    """The columns that the table had at its last materialization."""
    event = context.instance.get_latest_materialization_event(plan.key)
    materialization = event.asset_materialization if event is not None else None
    entry = materialization.metadata.get(told.COLUMN_SCHEMA) if materialization else None
    if not isinstance(entry, dg.TableSchemaMetadataValue):
        return None
    return {each.name: each.type for each in entry.schema.columns}


def last_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None, *, most: int = 1
) -> Sequence[dg.EventLogRecord]:
    """The newest materializations of an asset, or of one partition of it."""
    records_filter = dg.AssetRecordsFilter(
        asset_key=key, asset_partitions=None if partition is None else [partition]
    )
    return instance.fetch_materializations(records_filter, limit=most).records


def text_of(record: dg.EventLogRecord, name: str) -> str | None:
    """A text in a materialization's metadata."""
    value = _metadata(record).get(name)
    return str(value.value) if value is not None else None


def batch_ids_of(record: dg.EventLogRecord) -> list[str]:
    """The batches that a materialization names."""
    value = _metadata(record).get(told.BATCH_IDS)
    ids: Any = value.value if value is not None else []
    return [str(each) for each in ids]


def _metadata(record: dg.EventLogRecord) -> Mapping[str, dg.MetadataValue[Any]]:
    materialization = record.asset_materialization
    return materialization.metadata if materialization is not None else {}
