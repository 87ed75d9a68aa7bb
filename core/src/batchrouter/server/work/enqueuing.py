"""How work is handed to whichever process does it: rows of the durable engine's queues.

A workflow is enqueued in the very transaction that makes it necessary: if and only if that
commits, it runs. Chunks stand in a partition for each batch, or, where workers share a database,
for each workspace, so that none of these holds up another. Names, queues and the version are
frozen: a batch that one release accepted is worked on by the next.
"""

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import batches

if TYPE_CHECKING:
    from dbos import DBOSClient

__all__ = ["APP_NAME", "BATCHES", "CHUNKS", "WORKFLOWS_VERSION", "AcceptsOnly", "WorkQueue"]

APP_NAME = "batchrouter"
#: Of the recorded steps, not of the tables: it changes never, or all open batches are lost.
WORKFLOWS_VERSION = "schema-1"
BATCHES = "batches"
CHUNKS = "chunks"
_MAX_KNOWN = 10_000


class WorkQueue:
    """Enqueues the three kinds of workflows, with nothing but ids in them.

    Args:
        database: Holds the queues.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._workspace_of: dict[str, str] = {}
        self._client: DBOSClient | None = None

    def open(self) -> None:
        """Be ready; the queues' tables must be there."""
        from dbos import DBOSClient  # noqa: PLC0415 - half a second that only a running router pays
        from dbos._serialization import DBOSPortableJSON  # noqa: PLC0415, PLC2701 - pinned 3.4: the default is pickle, which runs what it reads

        self._client = DBOSClient(
            system_database_engine=self._database.engine,
            serializer=DBOSPortableJSON,
            application_name=APP_NAME,
            lazy=True,
        )

    def close(self) -> None:
        """Let go; again is fine."""
        if self._client is not None:
            self._client.destroy()
            self._client = None

    def plan(self, conn: Connection, batch_id: str) -> None:
        """Have a batch planned."""
        self._add(conn, BATCHES, "plan", batch_id, batch_id)

    def chunk(self, conn: Connection, batch_id: str, number: int) -> None:
        """Have a chunk worked on."""
        self._add(conn, CHUNKS, "chunk", f"{batch_id}/{number}", batch_id, number)

    def finish(self, conn: Connection, batch_id: str) -> None:
        """Have a batch finished."""
        self._add(conn, BATCHES, "finish", f"{batch_id}/finish", batch_id)

    def _add(
        self, conn: Connection, queue: str, workflow: str, workflow_id: str, *arguments: Any
    ) -> None:
        if self._client is None:
            raise RuntimeError("the engine is not running")
        from dbos import EnqueueOptions  # noqa: PLC0415 - loaded already: the queue is open

        options = EnqueueOptions(
            queue_name=queue,
            workflow_name=workflow,
            workflow_id=workflow_id,
            app_version=WORKFLOWS_VERSION,
        )
        if queue == CHUNKS:
            options["queue_partition_key"] = arguments[0]
            if self._database.is_shared:
                options["queue_partition_key"] = self._workspace(conn, arguments[0])
                # Batches of a workspace take turns: the first chunks of all before any second.
                options["priority"] = arguments[1] + 1
        self._client.enqueue_in_transaction(conn, options, *arguments)

    def _workspace(self, conn: Connection, batch_id: str) -> str:
        known = self._workspace_of.get(batch_id)
        if known is None:
            wanted = select(batches.c.workspace_id).where(batches.c.id == batch_id)
            known = conn.execute(wanted).scalar_one()
            if len(self._workspace_of) >= _MAX_KNOWN:
                self._workspace_of.clear()
            self._workspace_of[batch_id] = known
        return known


class AcceptsOnly:
    """The engine of a process that accepts batches and leaves the work to others."""

    def __init__(self, database: Database) -> None:
        self._queue = WorkQueue(database)

    async def start(self) -> None:
        """Be ready to enqueue."""
        self._queue.open()

    async def stop(self) -> None:
        """Let go."""
        self._queue.close()

    def enqueue(self, conn: Connection, batch_id: str) -> None:
        """Have a batch run by a worker, if and only if the caller's transaction commits."""
        self._queue.plan(conn, batch_id)

    def cancel(self, batch_id: str) -> None:
        """Do nothing: workers look at the batch's row every second."""
        del batch_id
