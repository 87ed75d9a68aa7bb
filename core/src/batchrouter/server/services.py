"""What every part of a running router is given: folder, tables, objects, keys, engine, metrics."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from batchrouter.server.config import RouterConfig
from batchrouter.server.metrics import Metrics
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.vault import Vault

__all__ = ["BatchEngine", "Services"]


class BatchEngine(Protocol):
    """What runs accepted batches."""

    async def start(self) -> None:
        """Take the data folder, and go on with what was left."""
        ...

    async def stop(self) -> None:
        """Suspend the work; the next start goes on from there."""
        ...

    def enqueue(self, conn: Connection, batch_id: str) -> None:
        """Have a batch run, if and only if the caller's transaction commits."""
        ...

    def cancel(self, batch_id: str) -> None:
        """Say that a batch was asked to cancel; its row says so already."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one router.

    Attributes:
        engine: None only in tests of the surface alone: batches then stay queued.
        public_url: The base of signed URLs; never taken from a request's `Host`.
        is_loopback: Whether the router listens on loopback only; webhooks may then go to
            loopback over HTTP.
    """

    folder: DataFolder
    config: RouterConfig
    database: Database
    objects: Objects
    vault: Vault
    engine: BatchEngine | None
    public_url: str
    is_loopback: bool
    metrics: Metrics
