"""The durable engine: what was accepted is worked on until it ends, whatever dies meanwhile.

DBOS keeps three kinds of workflows, and nothing but ids in them: `plan` and `finish` for a
batch, `chunk` for a chunk. Each is one re-runnable step over our own tables, which are the
truth; the list of recorded steps is frozen (`enqueuing.py`).

On SQLite there is one process a data folder: the executor's id is fixed, and `FolderLock` sees to
it that no second process runs the first one's steps again. On a shared database each process has
a name of its own and a `Lease`, and what a dead one had begun is handed on.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from batchrouter import killpoints, tracing
from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.log_fields import logging_with, span_attributes
from batchrouter.server.metrics import Metrics
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.sqlite import LEAN
from batchrouter.server.work.chunk import ChunkWork
from batchrouter.server.work.enqueuing import (
    APP_NAME,
    BATCHES,
    CHUNKS,
    WORKFLOWS_VERSION,
    WorkQueue,
)
from batchrouter.server.work.finishing import fail_batch, finish_batch
from batchrouter.server.work.lease import Lease
from batchrouter.server.work.lock import FolderLock
from batchrouter.server.work.patience import Patience
from batchrouter.server.work.planning import plan_batch
from batchrouter.server.work.shop import Pulse, Shop

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

_EXECUTOR_ID = "batchrouter-router"

#: A batch passes three queues on its way; each costs half of this on average.
_POLL_S = 0.2
_BATCHES_AT_ONCE = 16
#: Chunks of one batch, and of all: most of them wait for a provider, in a thread each. A
#: partition per batch keeps a batch of 10 million items from holding up one of ten.
_CHUNKS_AT_ONCE_PER_BATCH = 16
_CHUNKS_AT_ONCE = 128
#: Of each worker that shares a database, a workspace gets half at most: the next one finds room.
_CHUNKS_AT_ONCE_PER_WORKSPACE = 64

#: Connections of the durable engine's own, a process; a server has a hundred or so for all.
_SHARED_POOL = 8
_SWEEP_AT_ONCE = 500
_STOP_WITHIN_S = 10.0


class Engine:
    """Runs batches for as long as the router runs.

    Args:
        database: The tables, which hold the workflows too.
        objects: Manifests, chunk results, artifacts.
        config: Lanes, workflows, limits.
        folder: The data folder: lock, and the memory of simulated providers.
        metrics: Where settled items are counted.
        on_lost: Called when another worker has taken this one's work over.

    Raises:
        ConfigError: An option of a lane is wrong.

    Example:
        >>> async def serve(engine: Engine) -> None:
        ...     await engine.start()     # inside the application's lifespan
        ...     await engine.stop()
    """

    def __init__(
        self,
        database: Database,
        objects: Objects,
        config: RouterConfig,
        folder: DataFolder,
        metrics: Metrics,
        *,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._on_lost = on_lost
        self._database = database
        self._folder = folder
        self._retention = config.retention
        self._workers = config.workers
        # On a shared database a name that is never used again.
        name = f"worker-{secrets.token_hex(8)}" if database.is_shared else ""
        self._executor_id = name or _EXECUTOR_ID
        self._pulse = Pulse()
        self._queue = WorkQueue(database)
        self._shop = Shop(
            database=database,
            objects=objects,
            lanes=LaneRegistry(config, folder.root / "providers", database, objects),
            config=config,
            enqueue_chunk=self._queue.chunk,
            enqueue_finish=self._queue.finish,
            worker=name,
            pulse=self._pulse,
            metrics=metrics,
        )
        self._lock: FolderLock | None = None
        self._lease: Lease | None = None
        self._patience = Patience(self._pulse)
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the folder, and go on with everything that a former process has left.

        Call it on the event loop that serves; the work itself is done in threads.

        Raises:
            ConfigError: Another process serves the folder.
        """
        is_shared = self._database.is_shared
        self._lock = FolderLock.acquire(self._folder.lock, shared=is_shared)
        try:
            if is_shared:
                await asyncio.to_thread(self._enter)
            await self._launch()
        except BaseException:
            self._lock.release()
            raise
        if self._lease is not None:
            self._lease.keep()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Suspend the work and let go of the folder; the next start goes on from here."""
        from dbos import DBOS  # noqa: PLC0415 - half a second that only a running router pays

        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self._pulse.stop()
        is_idle = await asyncio.to_thread(self._patience.wait_until_idle, _STOP_WITHIN_S)
        await asyncio.to_thread(self._shop.lanes.close)
        await asyncio.to_thread(self._shop.bench.close)
        self._queue.close()
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        if self._lease is not None:
            # A step that is still waiting for a provider keeps its lease until that runs out.
            # Not in a thread: DBOS has taken the loop's own threads with it.
            self._lease.end(give_back=is_idle)
        if self._lock is not None:
            self._lock.release()

    def enqueue(self, conn: Connection, batch_id: str) -> None:
        """Have a batch run, if and only if the caller's transaction commits."""
        self._queue.plan(conn, batch_id)

    def cancel(self, batch_id: str) -> None:
        """Wake the steps of a batch that was asked to cancel; its row says so already."""
        _log.debug("batch %s was asked to cancel", batch_id)
        self._pulse.beat()

    def _enter(self) -> None:
        """Take a place among the workers of a shared database."""
        self._lease = Lease(
            self._database,
            self._executor_id,
            self._workers.lease_s,
            hand_on=_hand_on,
            on_lost=self._lose,
        )
        self._lease.take()

    def _lose(self) -> None:
        """Stop every step: another worker goes on with them."""
        self._pulse.stop()
        if self._on_lost is not None:
            self._on_lost()

    async def _launch(self) -> None:
        from dbos import DBOS, DBOSConfig  # noqa: PLC0415 - see `stop`
        from dbos._serialization import DBOSPortableJSON  # noqa: PLC0415, PLC2701 - pinned 3.4: the default is pickle, which runs what it reads

        # Its log goes where the router's own goes; it names workflows, never what is in them.
        dbos_log = logging.getLogger("dbos")
        dbos_log.handlers = [logging.NullHandler()]
        dbos_log.propagate = True
        config = DBOSConfig(
            name=APP_NAME,
            system_database_url=self._database.url,
            application_version=WORKFLOWS_VERSION,
            executor_id=self._executor_id,
            serializer=DBOSPortableJSON,
            log_level="WARNING",
            enable_otlp=False,
            use_listen_notify=False,
        )
        if self._database.is_shared:
            config["run_migrations"] = False  # `batchrouter migrate` does
            config["sys_db_pool_size"] = _SHARED_POOL
        else:
            config["db_engine_kwargs"] = {"connect_args": dict(LEAN)}
        DBOS(config=config)
        self._register("plan", self._plan)
        self._register("chunk", self._chunk)
        self._register("finish", self._finish)
        DBOS.launch()
        self._queue.open()
        is_shared = self._database.is_shared
        await DBOS.register_queue_async(
            BATCHES,
            worker_concurrency=_BATCHES_AT_ONCE,
            polling_interval_sec=_POLL_S,
            on_conflict="always_update",
        )
        await DBOS.register_queue_async(
            CHUNKS,
            worker_concurrency=_CHUNKS_AT_ONCE,
            partition_concurrency=None if is_shared else _CHUNKS_AT_ONCE_PER_BATCH,
            partition_worker_concurrency=_CHUNKS_AT_ONCE_PER_WORKSPACE if is_shared else None,
            polling_interval_sec=_POLL_S,
            on_conflict="always_update",
        )

    def _register(self, name: str, work: Callable[..., None]) -> None:
        """Make a workflow of one recorded step."""
        from dbos import DBOS  # noqa: PLC0415 - see `stop`

        @DBOS.step(name=f"{name}_step")
        def step(*arguments: Any) -> None:
            work(*arguments)

        def workflow(*arguments: Any) -> None:
            step(*arguments)

        # None: a router that is killed often must not lose a batch at its hundredth start.
        DBOS.workflow(name=name, max_recovery_attempts=None)(workflow)

    def _plan(self, batch_id: str) -> None:
        def give_up() -> None:
            fail_batch(self._shop, batch_id, "internal_error", "the batch could not be planned")

        with _traced("batch.plan", batch_id=batch_id):
            self._patience.run(lambda: plan_batch(self._shop, batch_id), give_up)

    def _chunk(self, batch_id: str, number: int) -> None:
        work = ChunkWork(self._shop, batch_id, number)
        with _traced("batch.chunk", batch_id=batch_id, chunk_number=number):
            self._patience.run(work.run, work.give_up)

    def _finish(self, batch_id: str) -> None:
        def give_up() -> None:
            fail_batch(self._shop, batch_id, "internal_error", "the batch could not be finished")

        with _traced("batch.finish", batch_id=batch_id):
            self._patience.run(lambda: finish_batch(self._shop, batch_id), give_up)

    async def _sweep(self) -> None:
        """Delete the workflows of batches that ended long ago; our own tables stay."""
        while True:
            await asyncio.sleep(self._retention.sweep_every_s)
            try:
                await asyncio.to_thread(
                    _delete_ended_workflows, timedelta(days=self._retention.workflow_days)
                )
            except Exception as error:  # noqa: BLE001 - tidying up must not end with the first full disk
                _log.warning("old workflows could not be deleted: %s", type(error).__name__)


@contextmanager
def _traced(name: str, **ids: str | int) -> Generator[None]:
    """Put the ids of a piece of work into its span, and into its lines in the log."""
    with logging_with(**ids), tracing.span(name, attributes=span_attributes(ids)):
        yield


def _hand_on(living: frozenset[str]) -> None:
    """Put back into its queue what was begun by a worker that does not live any more.

    Several workers may do this at once: each workflow is put back by one of them.
    """
    from dbos import DBOS  # noqa: PLC0415 - see `Engine.stop`

    begun = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
    dead = {one.executor_id for one in begun if one.executor_id} - living
    if dead:
        # Pinned 3.4; the public call would take the living ones' too.
        DBOS._recover_pending_workflows(sorted(dead))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _delete_ended_workflows(kept_for: timedelta) -> None:
    from dbos import DBOS  # noqa: PLC0415 - see `Engine.stop`

    before = (datetime.now(UTC) - kept_for).isoformat()
    while ended := DBOS.list_workflows(
        status=["SUCCESS", "ERROR", "CANCELLED"],
        completed_before=before,
        limit=_SWEEP_AT_ONCE,
        load_input=False,
        load_output=False,
    ):
        killpoints.reached("retention.before_workflows_deleted")
        DBOS.delete_workflows([one.workflow_id for one in ended])
        killpoints.reached("retention.after_workflows_deleted")
