"""One tick of the sensor: from what has ended to the runs that land it."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from batchrouter.errors import NotFoundError
from dagster_batchrouter import metadata as told
from dagster_batchrouter.history import batch_ids_of, last_materializations, text_of
from dagster_batchrouter.plan import RUN_KEY_TAG, JobPlan
from dagster_batchrouter.quiet import Unlanded, open_batches, tries_left, unlanded_submissions

if TYPE_CHECKING:
    from batchrouter import Client
    from batchrouter.run import EndedBatch
    from dagster_batchrouter.resources import BatchrouterResource

_TICK_S = 35.0
"""A tick's own bound: Dagster ends a sensor's call after 60 s."""

_MOST_LAUNCHES = 500
_HELD_S = 120.0
"""A batch may end before Dagster knows of its submission; so long its landing waits for that."""

_NEW_SUBMISSIONS = 200
_NEWEST_TABLES = 50
"""Without partitions, each launch is a run: so many are looked back on."""

Held = tuple[str, str, str, str, float]
"""state, job, run key, run id of an ended batch, and since when it is held."""


@dataclass(slots=True)
class Cursor:
    """What one tick leaves to the next.

    Attributes:
        look: Where the next look for ended batches begins.
        held: Batches that have ended and are not launched yet, by id.
        new_after: Up to which event of each asset submissions were read.
        quiet_at: When the second look was, in seconds of the epoch.
    """

    look: str | None = None
    held: dict[str, Held] = field(default_factory=dict[str, Held])
    new_after: dict[str, int] = field(default_factory=dict[str, int])
    quiet_at: float = 0.0

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """Read what `write` wrote; the first tick has none."""
        return cls(**json.loads(text)) if text else cls(quiet_at=time.time())

    def write(self) -> str:
        """Give the text that Dagster keeps."""
        return json.dumps(asdict(self), separators=(",", ":"))


class Tick:
    """One evaluation."""

    def __init__(
        self,
        *,
        instance: dg.DagsterInstance,
        plans: Sequence[JobPlan],
        cursor: Cursor,
        quiet_s: float,
        run_tags: dict[str, str],
    ) -> None:
        self._instance = instance
        self._plans = plans
        self._by_job: dict[str, list[JobPlan]] = {}
        for plan in plans:
            self._by_job.setdefault(plan.job.name, []).append(plan)
        self.cursor = cursor
        self._quiet_s = quiet_s
        self._run_tags = run_tags
        self._end_s = time.monotonic() + _TICK_S
        self._requests: dict[str, dg.RunRequest] = {}
        self._counts = {"ended": 0, "held": 0, "requests to the router": 0}

    @property
    def summary(self) -> str:
        """What the tick did, for its log."""
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        return f"{len(self._requests)} landing runs; {counts}"

    def evaluate(self, resource: "BatchrouterResource") -> list[dg.RunRequest]:
        """Find what is to be landed; the cursor is moved on.

        Raises:
            BatchrouterError: The router or the inbox cannot be read; keep the old cursor.
        """
        with (
            dg.partition_loading_context(dynamic_partitions_store=self._instance),
            resource.get_client() as client,
        ):
            self._land_what_ended(client, resource)
            self._land_what_needs_no_batch()
            if time.time() - self.cursor.quiet_at >= self._quiet_s:
                self._land_what_has_gone_quiet(client)
        self._counts["held"] = len(self.cursor.held)
        return list(self._requests.values())

    def _land_what_ended(self, client: "Client", resource: "BatchrouterResource") -> None:
        ended = {each.batch_id: (each, since) for each, since in self._held()}
        for batch in self._look(client, resource):
            ended.setdefault(batch.batch_id, (batch, time.time()))
        self._counts["ended"] = len(ended)
        self.cursor.held = {}
        for batch, since in ended.values():
            for plan in self._by_job.get(batch.job, ()):
                if plan.partition_in(batch.run_key) is not None:
                    self._consider(client, plan, batch, since, ended.keys())

    def _held(self) -> "Iterable[tuple[EndedBatch, float]]":
        from batchrouter.run import EndedBatch  # noqa: PLC0415 - costs a code location its load

        for batch_id, (state, job, run_key, run_id, since) in self.cursor.held.items():
            yield EndedBatch(batch_id, state, job, run_key, run_id), since

    def _look(self, client: "Client", resource: "BatchrouterResource") -> "Iterable[EndedBatch]":
        from batchrouter.run import look_for_ended  # noqa: PLC0415 - as above

        inbox = resource.get_inbox()
        try:
            look = look_for_ended(
                client,
                self.cursor.look,
                inbox=inbox,
                time_limit_s=_TICK_S / 2,
                most=_MOST_LAUNCHES,
            )
        finally:
            if inbox is not None:
                inbox.close()
        self.cursor.look = look.cursor
        self._counts["requests to the router"] += look.request_count
        return look.ended

    def _consider(
        self,
        client: "Client",
        plan: JobPlan,
        batch: "EndedBatch",
        since: float,
        ended: Iterable[str],
    ) -> None:
        """Launch the landing of an ended batch, unless it is landed or its run goes on."""
        partition = self._partition(plan, batch.run_key)
        if plan.partitions_def is not None and partition is None:
            return  # a partition that is no more
        if time.monotonic() > self._end_s or len(self._requests) >= _MOST_LAUNCHES:
            self._hold(batch, since)
            return
        if self._is_landed(plan, partition, batch.run_key, batch.batch_id):
            return
        siblings = self._siblings(plan, partition, batch.run_key)
        if siblings is None and time.time() - since < _HELD_S:
            self._hold(batch, since)
            return
        if batch.batch_id in (siblings or ()) and not self._all_ended(client, siblings, ended):
            return  # the last of them to end launches the landing
        self._launch(plan, partition, batch.run_key, batch.batch_id)

    def _hold(self, batch: "EndedBatch", since: float) -> None:
        held: Held = (batch.state, batch.job, batch.run_key, batch.run_id, since)
        self.cursor.held[batch.batch_id] = held

    def _partition(self, plan: JobPlan, run_key: str) -> str | None:
        if plan.partitions_def is None:
            return None
        partition = plan.partition_in(run_key)
        if partition is None:
            return None
        return partition if plan.partitions_def.has_partition_key(partition) else None

    def _is_landed(
        self, plan: JobPlan, partition: str | None, run_key: str, batch_id: str | None
    ) -> bool:
        tables = last_materializations(
            self._instance, plan.key, partition, most=1 if partition else _NEWEST_TABLES
        )
        own = (each for each in tables if text_of(each, told.RUN_KEY) == run_key)
        return any(batch_id is None or batch_id in batch_ids_of(each) for each in own)

    def _siblings(self, plan: JobPlan, partition: str | None, run_key: str) -> list[str] | None:
        """The batches of a run's submission; None when Dagster does not know it yet."""
        assert plan.submission_key is not None, "only deferred tables have a sensor"
        submissions = last_materializations(
            self._instance, plan.submission_key, partition, most=1 if partition else _NEWEST_TABLES
        )
        own = (each for each in submissions if text_of(each, told.RUN_KEY) == run_key)
        record = next(own, None)
        return batch_ids_of(record) if record is not None else None

    def _all_ended(
        self, client: "Client", batch_ids: Sequence[str] | None, ended: Iterable[str]
    ) -> bool:
        known = set(ended)
        for batch_id in batch_ids or ():
            if batch_id in known:
                continue
            self._counts["requests to the router"] += 1
            try:
                if not client.retrieve_batch(batch_id).is_terminal:
                    return False
            except NotFoundError:
                continue  # the landing says so
        return True

    def _land_what_needs_no_batch(self) -> None:
        """Land what had ended already when it was submitted, such as an empty table's run."""
        keys = {plan.submission_key: plan for plan in self._plans if plan.submission_key}
        for record in self._instance.get_asset_records(list(keys)):
            key = record.asset_entry.asset_key
            name, newest = key.to_user_string(), record.asset_entry.last_materialization_storage_id
            after = self.cursor.new_after.get(name, 0)
            if newest is not None and newest > after:
                self.cursor.new_after[name] = self._read_new(keys[key], key, after)

    def _read_new(self, plan: JobPlan, key: dg.AssetKey, after: int) -> int:
        records_filter = dg.AssetRecordsFilter(key, after_storage_id=after)
        page = self._instance.fetch_materializations(
            records_filter, limit=_NEW_SUBMISSIONS, ascending=True
        )
        for record in page.records:
            after = max(after, record.storage_id)
            run_key, stage = text_of(record, told.RUN_KEY), text_of(record, told.STAGE)
            if run_key is None or stage == "waiting":
                continue
            ids = batch_ids_of(record)
            partition = self._partition(plan, run_key)
            last_id = ids[-1] if ids else None
            if not self._is_landed(plan, partition, run_key, last_id):
                self._launch(plan, partition, run_key, last_id or f"{run_key}@{record.storage_id}")
        return after

    def _land_what_has_gone_quiet(self, client: "Client") -> None:
        """Launch again what is submitted for long, not open at the router, and not landed."""
        self.cursor.quiet_at = time.time()
        before = time.time() - self._quiet_s
        unlanded = [
            each
            for plan in self._plans
            for each in unlanded_submissions(self._instance, plan, before_timestamp=before)
        ]
        if not unlanded:
            return
        still_open, request_count = open_batches(client)
        self._counts["requests to the router"] += request_count
        if still_open is None:
            return
        for each in unlanded:
            if time.monotonic() > self._end_s or len(self._requests) >= _MOST_LAUNCHES:
                self.cursor.quiet_at = 0.0  # the next tick goes on
                return
            if still_open.isdisjoint(each.batch_ids):
                self._launch_again(each)

    def _launch_again(self, each: Unlanded) -> None:
        last_id = each.batch_ids[-1] if each.batch_ids else None
        if self._is_landed(each.plan, each.partition, each.run_key, last_id):
            return
        if each.plan.partitions_def and self._partition(each.plan, each.run_key) is None:
            return
        failed = tries_left(self._instance, each.run_key)
        if failed is not None:
            # Should the first look have found the batch, too: its launch is used up.
            self._requests.pop(each.run_key, None)
            # The first try has the key that the first look gives, so that both launch one run.
            first = last_id or each.run_key
            again = f"{first}:again-{failed}" if failed else first
            self._launch(each.plan, each.partition, each.run_key, again)

    def _launch(self, plan: JobPlan, partition: str | None, run_key: str, launch_key: str) -> None:
        tags: Mapping[str, str] = {**self._run_tags, RUN_KEY_TAG: run_key}
        self._requests.setdefault(
            run_key,
            dg.RunRequest(
                run_key=launch_key,
                partition_key=partition,
                asset_selection=[plan.key],
                tags=tags,
            ),
        )
