"""The durable engine: what was accepted is worked on until it ends, whatever dies meanwhile.

DBOS keeps three kinds of workflows, and nothing but ids in them: `plan` and `finish` for a
batch, `chunk` for a chunk. Each is one re-runnable step over our own tables, which are the
truth; the list of recorded steps is frozen, and the application version is pinned to the
schema's, so that an upgraded router goes on with its predecessor's batches. A workflow is
enqueued in the very transaction that makes it necessary.

One process a data folder: the executor's id is fixed, and a second process with it would run
the first one's steps again. `FolderLock` sees to that.
"""

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from batchrouter import killpoints, tracing
from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.log_fields import logging_with, span_attributes
from batchrouter.server.metrics import Metrics
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.tables import SCHEMA_VERSION
from batchrouter.server.work.chunk import ChunkWork
from batchrouter.server.work.finishing import fail_batch, finish_batch
from batchrouter.server.work.lock import FolderLock
from batchrouter.server.work.patience import Patience
from batchrouter.server.work.planning import plan_batch
from batchrouter.server.work.shop import Pulse, Shop

if TYPE_CHECKING:
    from dbos import DBOSClient

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

_APP_NAME = "batchrouter"
_APP_VERSION = f"schema-{SCHEMA_VERSION}"
_EXECUTOR_ID = "batchrouter-router"
_BATCHES = "batches"
_CHUNKS = "chunks"

#: A batch passes three queues on its way; each costs half of this on average.
_POLL_S = 0.2
_BATCHES_AT_ONCE = 16
#: Chunks of one batch, and of all: most of them wait for a provider, in a thread each. A
#: partition per batch keeps a batch of 10 million items from holding up one of ten.
_CHUNKS_AT_ONCE_PER_BATCH = 16
_CHUNKS_AT_ONCE = 128

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
    ) -> None:
        self._database = database
        self._folder = folder
        self._retention = config.retention
        self._pulse = Pulse()
        self._shop = Shop(
            database=database,
            objects=objects,
            lanes=LaneRegistry(config, folder.root / "providers", database, objects),
            config=config,
            enqueue_chunk=self._enqueue_chunk,
            enqueue_finish=self._enqueue_finish,
            pulse=self._pulse,
            metrics=metrics,
        )
        self._client: DBOSClient | None = None
        self._lock: FolderLock | None = None
        self._patience = Patience(self._pulse)
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the folder, and go on with everything that a former process has left.

        Call it on the event loop that serves; the work itself is done in threads.

        Raises:
            ConfigError: Another process serves the folder.
        """
        self._lock = FolderLock.acquire(self._folder.lock)
        try:
            await self._launch()
        except BaseException:
            self._lock.release()
            raise
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Suspend the work and let go of the folder; the next start goes on from here."""
        from dbos import DBOS  # noqa: PLC0415 - half a second that only a running router pays

        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self._pulse.stop()
        await asyncio.to_thread(self._patience.wait_until_idle, _STOP_WITHIN_S)
        await asyncio.to_thread(self._shop.lanes.close)
        await asyncio.to_thread(self._shop.bench.close)
        if self._client is not None:
            self._client.destroy()
            self._client = None
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        if self._lock is not None:
            self._lock.release()

    def enqueue(self, conn: Connection, batch_id: str) -> None:
        """Have a batch run, if and only if the caller's transaction commits."""
        self._enqueue(conn, _BATCHES, "plan", batch_id, batch_id)

    def cancel(self, batch_id: str) -> None:
        """Wake the steps of a batch that was asked to cancel; its row says so already."""
        _log.debug("batch %s was asked to cancel", batch_id)
        self._pulse.beat()

    def _enqueue_chunk(self, conn: Connection, batch_id: str, number: int) -> None:
        self._enqueue(conn, _CHUNKS, "chunk", f"{batch_id}/{number}", batch_id, number)

    def _enqueue_finish(self, conn: Connection, batch_id: str) -> None:
        self._enqueue(conn, _BATCHES, "finish", f"{batch_id}/finish", batch_id)

    def _enqueue(
        self, conn: Connection, queue: str, workflow: str, workflow_id: str, *arguments: Any
    ) -> None:
        if self._client is None:
            raise RuntimeError("the engine is not running")
        from dbos import EnqueueOptions  # noqa: PLC0415 - loaded already: the engine runs

        options = EnqueueOptions(
            queue_name=queue,
            workflow_name=workflow,
            workflow_id=workflow_id,
            app_version=_APP_VERSION,
        )
        if queue == _CHUNKS:
            options["queue_partition_key"] = arguments[0]
        self._client.enqueue_in_transaction(conn, options, *arguments)

    async def _launch(self) -> None:
        from dbos import DBOS, DBOSClient, DBOSConfig  # noqa: PLC0415 - see `stop`
        from dbos._serialization import DBOSPortableJSON  # noqa: PLC0415, PLC2701 - pinned 3.4: the default is pickle, which runs what it reads

        # Its log goes where the router's own goes; it names workflows, never what is in them.
        dbos_log = logging.getLogger("dbos")
        dbos_log.handlers = [logging.NullHandler()]
        dbos_log.propagate = True
        config = DBOSConfig(
            name=_APP_NAME,
            system_database_url=f"sqlite:///{self._folder.database}",
            application_version=_APP_VERSION,
            executor_id=_EXECUTOR_ID,
            serializer=DBOSPortableJSON,
            log_level="WARNING",
            enable_otlp=False,
            use_listen_notify=False,
        )
        DBOS(config=config)
        self._register("plan", self._plan)
        self._register("chunk", self._chunk)
        self._register("finish", self._finish)
        DBOS.launch()
        self._client = DBOSClient(
            system_database_engine=self._database.engine,
            serializer=DBOSPortableJSON,
            application_name=_APP_NAME,
            lazy=True,
        )
        await DBOS.register_queue_async(
            _BATCHES,
            worker_concurrency=_BATCHES_AT_ONCE,
            polling_interval_sec=_POLL_S,
            on_conflict="always_update",
        )
        await DBOS.register_queue_async(
            _CHUNKS,
            worker_concurrency=_CHUNKS_AT_ONCE,
            partition_concurrency=_CHUNKS_AT_ONCE_PER_BATCH,
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
