"""One execution of a job: opened by its run key, carried on by any process, bought once.

`advance()` is the one seam that orchestrators call: it does all that can be done now and says
whether to wait or that the run is done. Between two calls nothing is held but a folder.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from batchrouter.api.settings import Settings, resolve_settings
from batchrouter.errors import ConfigError, WaitTimeoutError
from batchrouter.run import outcome, steps
from batchrouter.run.answers import Done, QuoteSummary, Waiting
from batchrouter.run.building import build
from batchrouter.run.buying import lock_prices
from batchrouter.run.cancelling import GRACE_S, cancel
from batchrouter.run.catalog import RunStatus, status_of
from batchrouter.run.context import RunContext
from batchrouter.run.decide import parts_to_buy
from batchrouter.run.identity import RunIdentity
from batchrouter.run.progress import Progress, ProgressListener, nobody_listens
from batchrouter.run.receipt import Receipt
from batchrouter.run.reopen import OnRerun, begin, claim
from batchrouter.run.steps import until_settled
from batchrouter.run.waiting import (
    PASSING,
    Pauses,
    async_watcher_for,
    check_mode,
    seconds_to,
    until,
    watcher_for,
)
from batchrouter.run.watch import Listener
from batchrouter.run.watch_book import WaitMode

if TYPE_CHECKING:
    import pyarrow as pa

    from batchrouter.api.client import Client
    from batchrouter.job import Job


class Run:
    """One execution of a job. Use `Run.open`.

    Example:
        >>> run = Run.open(job, run_key="2026-11-22", runs_url="runs")  # doctest: +SKIP
        >>> run.execute().rows["succeeded"]                             # doctest: +SKIP
        10003
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context

    @classmethod
    def open(
        cls,
        job: "Job",
        *,
        run_key: str,
        runs_url: str | None = None,
        client: "Client | None" = None,
        settings: Settings | None = None,
        attempt: str | None = None,
        on_rerun: OnRerun = "resume",
        limit: int | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Self:
        """Create the run, or go on with it.

        Args:
            job: What to run, its parameters filled.
            run_key: The orchestrator's name of this execution, without any try number.
            runs_url: Where runs live, any fsspec URL; default: the setting.
            client: The API's client; default: one from the settings, opened when needed.
            settings: Default: the client's, else the environment's.
            attempt: A token of the orchestrator's attempt; recorded as a claim, so that
                `cancel` of an older attempt does nothing.
            on_rerun: ``resume`` goes on, and does nothing for what is landed; ``rebuy``
                buys the rest of what was cancelled or has expired, and all anew where nothing
                came or all did: with an `attempt` once, so that a retry under the same
                token goes on with what it bought; without one at every call, which is never
                right for an automatic retry.
            limit: Try the job on its first rows only: the run has its own key, and its rows
                land in the run folder instead of the job's table.
            on_progress: Called often, from this thread.

        Raises:
            RunIdentityConflictError: The key stands for another source, key, request or
                route, and something was bought; the message says which.
            JournalError: The run folder is damaged or of a newer version.
            ConfigError: A setting is wrong.
        """
        settings = resolve_settings(
            settings or (client.settings if client else None), runs_url=runs_url
        )
        if limit is not None and limit < 1:
            raise ConfigError(f"limit: {limit} is less than one row")
        identity = RunIdentity(
            namespace=settings.identity_namespace,
            job_name=job.name,
            run_key=run_key if limit is None else f"{run_key}~limit-{limit}",
        )
        context = RunContext.of(
            identity,
            settings,
            client,
            given_job=job,
            limit=limit,
            tell=on_progress or nobody_listens,
        )
        try:
            begin(context, on_rerun, attempt)
            if attempt is not None:
                claim(context, attempt)
        except BaseException:
            context.release_client()
            raise
        return cls(context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that the run opened; a later step opens them again."""
        self._context.release_client()

    @property
    def folder_url(self) -> str:
        """The run's folder, as a URL of its file system."""
        folder = self._context.folder
        return folder.root if folder.is_local else str(folder.fs.unstrip_protocol(folder.root))

    def status(self) -> RunStatus:
        """How far the run has come, by its journal alone."""
        context = self._context
        return status_of(context.journal.load(), context.identity.folder, context.rounds)

    def build(self) -> None:
        """Write the manifest and the row snapshot; nothing is sent. Does nothing if built.

        Raises:
            SourceError: The table cannot be read.
            ManifestError: A row cannot become a request; nothing of the build is kept.
            StorageError: The run folder takes no more; nothing of the build is kept.
        """
        if self._context.journal.load().manifest is None:
            until_settled(self._context, lambda: build(self._context))

    def columns(self) -> "pa.Schema":
        """Give the columns that the table has, or will have, and see that it takes them.

        Builds the run if it is not built; nothing is sent.

        Raises:
            SinkError: The table has other columns, or cannot be written.
            LandingError: The row snapshot was removed by retention.
            JobError: The output schema gives no columns.
        """
        self.build()
        return outcome.check_table(self._context)

    def quote(self) -> QuoteSummary:
        """Lock a price for what is still to buy; nothing is sent, and nothing is bought.

        Raises:
            APIError: The API refuses, such as `no_eligible_lane`.
            TransportError: No reply.
        """
        self.build()
        context = self._context
        until_settled(context, lambda: lock_prices(context, gate=False))
        parts = parts_to_buy(context.state)
        quotes = [part.quote for part in parts if part.quote is not None]
        quoted = context.state.quoted
        manifest = context.to_send
        return QuoteSummary(
            total_usd=sum((quote.quoted_usd for quote in quotes), Decimal(0)),
            committed_usd=context.state.committed_usd,
            budget_usd=context.most_usd,
            item_count=sum(manifest.parts[part.index].item_count for part in parts),
            row_count=context.manifest.row_count,
            lanes=quoted.lanes if quoted and quotes else (),
            why=quoted.why if quoted and quotes else "",
            expires_at=min((quote.expires_at for quote in quotes), default=None),
        )

    def submit(self) -> tuple[str, ...]:
        """Buy every part that is not bought yet, inside the budget.

        Returns:
            The ids of all batches of this generation.

        Raises:
            BudgetExceededError: The price is above the budget.
            UnsettledIntentError: It cannot be decided whether a purchase exists.
            APIError: The API refuses.
            TransportError: No reply; open the run again to settle what was sent.
        """
        steps.submit(self._context)
        return tuple(each.batch_id for each in self._context.state.current)

    def land(self, *, again: bool = False) -> Receipt:
        """Collect and land batches that have ended.

        Args:
            again: Write the table anew from the run folder, though it was landed; buys nothing.

        An intent that a dead process left open is settled first, as always.

        Raises:
            WaitTimeoutError: A batch is still open.
            LandingError: Something is still to buy, rows and results do not add up, or the
                table refuses.
        """
        context = self._context
        if again and context.journal.load().landed is not None:
            until_settled(context, lambda: outcome.land(context, again=True))
        step = steps.land(context)
        if isinstance(step, Done):
            return step.receipt
        raise WaitTimeoutError(
            f"{', '.join(step.batch_ids[:3]) or 'a purchase'} has not ended; nothing was landed"
        )

    def advance(self) -> Waiting | Done:
        """Do all that can be done now.

        Returns:
            `Waiting` when only the API can go on, `Done` when the table is landed. Either may
            come again and again; every call is safe to repeat after any death.

        Raises:
            BatchrouterError: `retryable` says whether calling again can help; the run goes on
                from where it is, in any process.
        """
        return steps.advance(self._context)

    def execute(self, *, wait: WaitMode = "both", timeout_s: float | None = None) -> Receipt:
        """Advance and wait until the table is landed.

        Args:
            wait: ``poll`` asks the API, ``webhook`` only listens to the inbox, ``both`` does
                both and polls rarely where there is an inbox.
            timeout_s: Give up waiting after so many seconds; the run itself goes on, and
                opening it again goes on waiting. Default: 72 hours.

        Raises:
            WaitTimeoutError: The time has come before the end.
            BatchrouterError: As `advance`.
        """
        check_mode(self._context.settings, wait)
        end_at = until(timeout_s)
        pauses = Pauses(end_at)
        while True:
            try:
                step = self.advance()
            except PASSING as error:
                time.sleep(pauses.next_s(error, bought=self._context.state.has_bought))
                continue
            if isinstance(step, Done):
                return step.receipt
            pauses = Pauses(end_at)
            self._check_time(step, end_at)
            wait_until = min(end_at, step.deadline_at)
            if step.batch_ids:
                watcher_for(self._context.settings).wait(
                    self._context.client,
                    step.batch_ids,
                    until=wait_until,
                    mode=wait,
                    listen=self._listener(step.batch_ids),
                )
            else:
                time.sleep(seconds_to(wait_until))

    async def aadvance(self) -> Waiting | Done:
        """`advance` on a worker thread: building and landing would block the loop."""
        return await asyncio.to_thread(self.advance)

    async def aexecute(self, *, wait: WaitMode = "both", timeout_s: float | None = None) -> Receipt:
        """`execute` without holding a thread while it waits."""
        from batchrouter.api.client import AsyncClient  # noqa: PLC0415 - loads httpx

        check_mode(self._context.settings, wait)
        end_at = until(timeout_s)
        pauses = Pauses(end_at)
        async with AsyncClient(self._context.client.settings) as client:
            while True:
                try:
                    step = await self.aadvance()
                except PASSING as error:
                    await asyncio.sleep(pauses.next_s(error, bought=self._context.state.has_bought))
                    continue
                if isinstance(step, Done):
                    return step.receipt
                pauses = Pauses(end_at)
                self._check_time(step, end_at)
                wait_until = min(end_at, step.deadline_at)
                if step.batch_ids:
                    await async_watcher_for(self._context.settings).wait(
                        client,
                        step.batch_ids,
                        until=wait_until,
                        mode=wait,
                        listen=self._listener(step.batch_ids),
                    )
                else:
                    await asyncio.sleep(seconds_to(wait_until))

    def cancel(
        self,
        reason: str = "cancelled by the caller",
        *,
        attempt: str | None = None,
        grace_s: float = GRACE_S,
    ) -> bool:
        """Stop the run: nothing more is bought, and what is open is asked to cancel.

        What finishes all the same is billed, collected and landed by the next `advance`.

        Args:
            reason: Recorded in the journal.
            attempt: Act only if this is still the newest claim after the grace: the attempt
                that took over keeps its batch.
            grace_s: How long a successor may take to claim, in seconds.

        Returns:
            False when there was nothing to cancel, or another attempt owns the run.

        Raises:
            APIError: The API refuses; the wish is recorded and the next `advance` repeats it.
            TransportError: No reply; likewise.
        """
        return cancel(self._context, reason, attempt=attempt, grace_s=grace_s)

    def _listener(self, batch_ids: Sequence[str]) -> Listener:
        detail = batch_ids[0] if len(batch_ids) == 1 else f"{len(batch_ids)} batches"

        def listen(done: int, total: int) -> None:
            self._context.tell(Progress("wait", done, total, "items", detail))

        return listen

    def _check_time(self, step: Waiting, end_at: datetime) -> None:
        if datetime.now(UTC) >= end_at:
            raise WaitTimeoutError(
                f"run {self._context.identity.run_key!r} is still waiting for "
                f"{', '.join(step.batch_ids[:3]) or 'a quote to expire'}. It goes on at the "
                "router: open the same run key again to wait further."
            )
