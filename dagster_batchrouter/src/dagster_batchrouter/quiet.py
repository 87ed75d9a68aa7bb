"""The second look: submissions that have no table though their batches have ended.

The sensor's first look cannot miss an end, but the run that it launches may die, or the batch
may be gone. So now and then Dagster's event log is asked for submissions without a table, and the
router for what is still open: what is in the first and not in the second needs a landing run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from dagster_batchrouter import metadata as told
from dagster_batchrouter.failures import FINAL_TAG
from dagster_batchrouter.history import batch_ids_of, text_of
from dagster_batchrouter.plan import RUN_KEY_TAG, JobPlan

if TYPE_CHECKING:
    from batchrouter import Client

OPEN_STATES = ("queued", "routing", "running", "finalizing", "cancelling")
"""Contract section 5; a server that knows others lists them only without a filter."""

_CHUNK = 500
_NEWEST = 100
"""Without partitions: so many submissions back."""
_PAGE = 1_000
_MOST_PAGES = 100
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Unlanded:
    """A submission that has no table yet."""

    plan: JobPlan
    partition: str | None
    run_key: str
    batch_ids: tuple[str, ...]


def unlanded_submissions(
    instance: dg.DagsterInstance, plan: JobPlan, *, before_timestamp: float
) -> Iterator[Unlanded]:
    """Yield the submissions of a job that were made before a time and are newer than the table."""
    assert plan.submission_key is not None, "only deferred tables have submissions"
    if plan.partitions_def is None:
        yield from _unlanded_launches(instance, plan, before_timestamp)
        return
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    submitted = instance.get_latest_storage_id_by_partition(plan.submission_key, kind)
    landed = instance.get_latest_storage_id_by_partition(plan.key, kind)
    newer = sorted(at for part, at in submitted.items() if at > landed.get(part, 0))
    for begin in range(0, len(newer), _CHUNK):
        chunk = newer[begin : begin + _CHUNK]
        records_filter = dg.AssetRecordsFilter(plan.submission_key, storage_ids=chunk)
        for record in instance.fetch_materializations(records_filter, limit=_CHUNK).records:
            if record.timestamp < before_timestamp:
                yield from _unlanded(plan, record, record.partition_key)


def _unlanded_launches(
    instance: dg.DagsterInstance, plan: JobPlan, before_timestamp: float
) -> Iterator[Unlanded]:
    assert plan.submission_key is not None, "only deferred tables have submissions"
    tables = instance.fetch_materializations(plan.key, limit=_NEWEST).records
    landed = {text_of(each, told.RUN_KEY) for each in tables}
    for record in instance.fetch_materializations(plan.submission_key, limit=_NEWEST).records:
        if record.timestamp < before_timestamp and text_of(record, told.RUN_KEY) not in landed:
            yield from _unlanded(plan, record, None)


def _unlanded(
    plan: JobPlan, record: dg.EventLogRecord, partition: str | None
) -> Iterator[Unlanded]:
    run_key = text_of(record, told.RUN_KEY)
    if run_key is not None:
        yield Unlanded(plan, partition, run_key, tuple(batch_ids_of(record)))


def open_batches(client: "Client") -> tuple[set[str] | None, int]:
    """The ids of all batches that are open, and how many requests it took.

    None when there are too many to list.

    Raises:
        BatchrouterError: The API cannot be read.
    """
    found: set[str] = set()
    after: str | None = None
    for number in range(1, _MOST_PAGES + 1):
        page = client.list_batches(limit=_PAGE, after=after, state=OPEN_STATES, view="summary")
        found.update(each.id for each in page.data if not each.is_terminal)
        if not page.has_more or page.next_cursor is None:
            return found, number
        after = page.next_cursor
    return None, _MOST_PAGES


def tries_left(instance: dg.DagsterInstance, run_key: str) -> int | None:
    """How often a landing has failed so far; None when it shall not be tried now.

    Not while one is under way, not after one that no repetition cures or that a person ended,
    and not after three.
    """
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key}), limit=20)
    failed = 0
    for run in runs:
        if not run.is_finished or FINAL_TAG in run.tags:
            return None
        if run.status == dg.DagsterRunStatus.CANCELED:
            return None
        failed += run.status == dg.DagsterRunStatus.FAILURE
    return failed if failed < _MOST_TRIES else None
