"""Ended batches as asset events, so that they start other DAGs: for an `AssetWatcher`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION

if TYPE_CHECKING:
    from batchrouter import Client
    from batchrouter.run import EndedBatch, Tidings

_log = logging.getLogger(__name__)

_WITH_INBOX_S = 1.0
_AFTER_FAILURE_S = 30.0


class BatchrouterEventTrigger(BaseEventTrigger):
    """Fires once for each batch of this installation that has ended, as webhooks or polls tell.

    The payload, which the started DAG finds in its triggering events, is ``{"batch_id",
    "state", "job", "run_key", "run_id"}``. A triggerer that restarts goes on where it was: what
    was told is kept below the runs URL.

    Args:
        batchrouter_conn_id: The connection; batches of its namespace are told of.
        job: Only this job's batches, by its name.
        states: Only batches that ended so.

    Example:
        >>> labelled = Asset(                                          # doctest: +SKIP
        ...     "label_tickets_ended",
        ...     watchers=[AssetWatcher(
        ...         name="batches", trigger=BatchrouterEventTrigger(job="label-tickets")
        ...     )],
        ... )
    """

    def __init__(
        self,
        *,
        batchrouter_conn_id: str = DEFAULT_CONNECTION,
        job: str | None = None,
        states: Sequence[str] = ("succeeded", "failed", "cancelled", "expired"),
    ) -> None:
        super().__init__()
        self.batchrouter_conn_id = batchrouter_conn_id
        self.job = job
        self.states = list(states)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Names only."""
        return (
            "airflow_provider_batchrouter.triggers.BatchrouterEventTrigger",
            {
                "batchrouter_conn_id": self.batchrouter_conn_id,
                "job": self.job,
                "states": self.states,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tell of batches for ever; what fails and passes is waited out."""
        from airflow_provider_batchrouter.hooks import (  # noqa: PLC0415 - likewise
            BatchrouterHook,
        )

        settings = await BatchrouterHook(self.batchrouter_conn_id).aget_settings()
        pause_s = _WITH_INBOX_S if settings.inbox_url else settings.poll_interval_s
        client = await asyncio.to_thread(self._open_client, settings)
        try:
            async for batch in self._ended(client, pause_s):
                yield TriggerEvent(asdict(batch))
        finally:
            client.close()

    async def _ended(self, client: "Client", pause_s: float) -> "AsyncIterator[EndedBatch]":
        from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - the triggerer's process

        tidings: Tidings | None = None
        while True:
            try:
                tidings = tidings or await asyncio.to_thread(self._open, client)
                ended = await asyncio.to_thread(tidings.look)
            except BatchrouterError as error:
                if not error.retryable:
                    raise
                _log.warning("looking again in %g s: %s", _AFTER_FAILURE_S, error)
                await asyncio.sleep(_AFTER_FAILURE_S)
                continue
            for batch in ended:
                if self._is_wanted(batch):
                    yield batch
                await asyncio.to_thread(tidings.told, batch)
            await asyncio.sleep(pause_s)

    def _is_wanted(self, batch: "EndedBatch") -> bool:
        return batch.state in self.states and self.job in {None, batch.job}

    def _open_client(self, settings: Any) -> "Client":
        from batchrouter import Client  # noqa: PLC0415 - loads httpx

        return Client(settings)

    def _open(self, client: "Client") -> "Tidings":
        from batchrouter.run import Tidings  # noqa: PLC0415 - the triggerer's process
        from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy

        inbox, settings = None, client.settings
        if settings.inbox_url:
            inbox = open_inbox(settings.inbox_url, **settings.storage_options)
        name = f"airflow\0{self.job or ''}\0{','.join(self.states)}"
        return Tidings(client, name, inbox=inbox)
