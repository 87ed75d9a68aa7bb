"""Waits for batches on behalf of a deferred task; holds ids only, and never buys."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION

_log = logging.getLogger(__name__)

_GRACE_S = 5.0
_SHOWN = 8

_ending: set[asyncio.Future[None]] = set()
"""Cancels under way: the loop itself keeps no hold on them."""

ENDED, DEADLINE, ERROR = "ended", "deadline", "error"


class BatchrouterBatchTrigger(BaseTrigger):
    """Fires when all batches are terminal, or when a wall-clock time has come.

    The event is ``{"status": "ended" | "deadline" | "error", "batch_ids": first eight,
    "batch_count": all, …}``. It is a hint: whoever gets it asks the API.

    Args:
        batch_ids: What to wait for; empty to wait for the time alone.
        until: ISO 8601 with its offset: absolute, so that a restarted triggerer waits no longer.
        batchrouter_conn_id: The connection.
        wait: ``both``, ``poll`` or ``webhook``.
        run: ``{"job", "run_key"}`` of the run that a killed task's attempt may cancel.
        attempt: The attempt's token; it cancels nothing that a later one has claimed.
        of_task: ``{"dag_id", "task_id", "run_id", "map_index"}``, to ask why the task was killed.
        passed_on: Handed back in the event as it is.
    """

    def __init__(
        self,
        *,
        batch_ids: Sequence[str],
        until: str,
        batchrouter_conn_id: str = DEFAULT_CONNECTION,
        wait: str = "both",
        run: Mapping[str, str] | None = None,
        attempt: str | None = None,
        of_task: Mapping[str, Any] | None = None,
        passed_on: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.batch_ids = list(batch_ids)
        self.until = until
        self.batchrouter_conn_id = batchrouter_conn_id
        self.wait = wait
        self.run_names = dict(run) if run else None
        self.attempt = attempt
        self.of_task = dict(of_task) if of_task else None
        self.passed_on = dict(passed_on or {})

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Ids and times only: this is stored, shown and logged."""
        return (
            f"airflow_provider_batchrouter.triggers.{type(self).__name__}",
            {
                "batch_ids": self.batch_ids,
                "until": self.until,
                "batchrouter_conn_id": self.batchrouter_conn_id,
                "wait": self.wait,
                "run": self.run_names,
                "attempt": self.attempt,
                "of_task": self.of_task,
                "passed_on": self.passed_on,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and say how it ended."""
        from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - the triggerer's process

        told: dict[str, Any] = {
            "batch_ids": self.batch_ids[:_SHOWN],
            "batch_count": len(self.batch_ids),
            **self.passed_on,
        }
        try:
            ended = await self._wait(datetime.fromisoformat(self.until))
        except BatchrouterError as error:
            yield TriggerEvent({**told, "status": ERROR, "code": error.code, "message": str(error)})
            return
        yield TriggerEvent({**told, "status": ENDED if ended else DEADLINE})

    async def _wait(self, until: datetime) -> bool:
        if not self.batch_ids:
            await asyncio.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))
            return False
        from airflow_provider_batchrouter.polling import (  # noqa: PLC0415 - the triggerer's process
            wait_for_batches,
        )

        return await wait_for_batches(
            self.batchrouter_conn_id,
            self.batch_ids,
            until=until,
            mode=self.wait,  # type: ignore[arg-type]  # checked when the task was made
        )

    async def on_kill(self) -> None:
        """Cancel the run if a person ended the task and this attempt still owns it.

        Airflow 3.3 and later calls this for a task that is marked or cleared, never for a
        triggerer that restarts. After a clear the next attempt goes on with the batch, so it is
        left alone, whichever of the two comes first.
        """
        if self.run_names is None:
            return
        # The triggerer cancels a trigger that is still there anew every second, `on_kill` with it.
        ending = asyncio.ensure_future(self._end())
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        await asyncio.shield(ending)

    async def _end(self) -> None:
        await asyncio.sleep(_GRACE_S)
        if not await self._is_decided():
            _log.info("the task will be tried again: its batches go on")
            return
        from airflow_provider_batchrouter.hooks import (  # noqa: PLC0415 - rarely needed
            BatchrouterHook,
        )

        try:
            settings = await BatchrouterHook(self.batchrouter_conn_id).aget_settings()
            cancelled = await asyncio.to_thread(self._cancel, settings)
        except Exception:
            # Nobody may await it any more, so it is told here.
            _log.exception("run %s was not cancelled", self.run_names)
            raise
        _log.info("cancelled the run" if cancelled else "there was nothing to cancel")

    async def _is_decided(self) -> bool:
        if self.of_task is None:
            return True
        from asgiref.sync import sync_to_async  # noqa: PLC0415 - rarely needed

        from airflow_provider_batchrouter.fate import is_decided  # noqa: PLC0415 - rarely needed

        # Through asgiref, by which the triggerer's socket finds its own event loop again.
        decided = await sync_to_async(is_decided)(**self.of_task)
        # Not told: the claim alone decides, and the grace is over.
        return decided is not False

    def _cancel(self, settings: Any) -> bool:
        from batchrouter.run import cancel_run  # noqa: PLC0415 - rarely needed

        assert self.run_names is not None
        return cancel_run(
            self.run_names["job"],
            self.run_names["run_key"],
            settings=settings,
            reason="the deferred task was ended by a person",
            attempt=self.attempt,
            grace_s=0,
        )
