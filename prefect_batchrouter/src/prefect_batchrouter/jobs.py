"""A job as a Prefect block: saved once, triggered from anywhere, and a handle on each run."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field

from batchrouter.errors import WaitTimeoutError
from prefect_batchrouter import steps
from prefect_batchrouter.credentials import DOCUMENTATION_URL, LOGO_URL, BatchrouterCredentials
from prefect_batchrouter.planning import OnRerun, Plan, plan_of
from prefect_batchrouter.showing import ProgressBar
from prefect_batchrouter.waiting import is_past, wait_for_batches, wait_for_batches_async


class BatchrouterRun(JobRun):  # pyright: ignore[reportMissingTypeArgument] - a parametrised generic would be registered as a block type of its own
    """One run of a job: wait for it, and fetch its receipt. `BatchrouterJob.trigger` gives it.

    It holds no connection, and can be made again at any time by triggering the same run key.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def run_key(self) -> str:
        """What the run is called."""
        return self._plan.run_key

    def wait_for_completion(self, timeout_s: float | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - the base is async, every implementation offers both
        """Wait until the table is landed.

        Args:
            timeout_s: Give up after so long; default: 72 hours. The batches go on.

        Raises:
            WaitTimeoutError: The time has come first.
            BatchrouterError: As `Run.advance`.
        """
        until = _until(timeout_s)
        bar = ProgressBar(self._plan)
        while (waiting := steps.advance(self._plan).get("waiting")) is not None:
            self._check(until)
            look_at = min(until, datetime.fromisoformat(waiting["deadline_at"]))
            wait_for_batches(self._plan, waiting["batch_ids"], look_at, bar)

    async def await_for_completion(self, timeout_s: float | None = None) -> None:
        """Do what `wait_for_completion` does, without blocking the event loop."""
        until = _until(timeout_s)
        bar = ProgressBar(self._plan)
        while True:
            waiting = (await asyncio.to_thread(steps.advance, self._plan)).get("waiting")
            if waiting is None:
                return
            self._check(until)
            look_at = min(until, datetime.fromisoformat(waiting["deadline_at"]))
            await wait_for_batches_async(self._plan, waiting["batch_ids"], look_at, bar)

    def fetch_result(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride] - as above
        """Give the receipt of the landed table; lands what has ended, and buys nothing.

        Raises:
            WaitTimeoutError: A batch is still open.
            LandingError: Something is still to buy.
        """
        return steps.land(self._plan)

    async def afetch_result(self) -> dict[str, Any]:
        """Do what `fetch_result` does, off the event loop."""
        return await asyncio.to_thread(self.fetch_result)

    def cancel(self, reason: str = "cancelled by the caller") -> bool:
        """Stop it; see `Run.cancel`. False when there was nothing to cancel."""
        return bool(steps.cancel(self._plan, reason)["cancelled"])

    async def acancel(self, reason: str = "cancelled by the caller") -> bool:
        """Do what `cancel` does, off the event loop."""
        return await asyncio.to_thread(self.cancel, reason)

    def _check(self, until: datetime) -> None:
        if is_past(until):
            raise WaitTimeoutError(
                f"run {self.run_key!r} of {self._plan.job.name!r} still waits. It goes on at the "
                "router: trigger the same run key to wait further."
            )


class BatchrouterJob(JobBlock):  # pyright: ignore[reportMissingTypeArgument] - as above
    """A job and the account that pays for it.

    Example:
        Load a saved block, run it, and read its receipt:

        ```python
        from prefect_batchrouter import BatchrouterJob

        label_tickets = BatchrouterJob.load("BLOCK_NAME")
        run = label_tickets.trigger(run_key="2026-11-22")
        run.wait_for_completion()
        print(run.fetch_result()["rows"])
        ```
    """

    _block_type_name = "Batchrouter Job"
    _block_type_slug = "batchrouter-job"
    _logo_url = LOGO_URL  # pyright: ignore[reportAssignmentType] - as every block declares it
    _documentation_url = DOCUMENTATION_URL  # pyright: ignore[reportAssignmentType] - as above

    credentials: BatchrouterCredentials = Field(description="The account that pays for it.")
    job: str | dict[str, Any] = Field(
        description="The path of a job file on the worker, or the job itself as a mapping."
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Values for the job's parameters."
    )

    def trigger(  # pyright: ignore[reportIncompatibleMethodOverride] - the base is async, every implementation offers both
        self,
        run_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        on_rerun: OnRerun = "resume",
    ) -> BatchrouterRun:
        """Buy what the run has not bought yet, and return at once.

        Args:
            run_key: What this run is called: the same key never buys twice. Default: the
                outermost flow run.
            params: Over the block's own.
            on_rerun: ``rebuy`` buys anew what ended before.

        Raises:
            JobError, ConfigError: The job or a setting is wrong.
            BudgetExceededError: The price is above the budget; nothing was bought.
            BatchrouterError: As `Run.submit`.
        """
        plan = self.plan(run_key=run_key, params=params, on_rerun=on_rerun)
        submitted = steps.submit(plan)
        self.logger.info(
            "run %s: %s batch(es), at most %s USD",
            plan.run_key,
            submitted["batch_count"],
            submitted["committed_usd"],
        )
        return BatchrouterRun(plan)

    async def atrigger(
        self,
        run_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        on_rerun: OnRerun = "resume",
    ) -> BatchrouterRun:
        """Do what `trigger` does, off the event loop."""
        return await asyncio.to_thread(self.trigger, run_key, params, on_rerun)

    def plan(
        self,
        *,
        run_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        on_rerun: OnRerun = "resume",
    ) -> Plan:
        """Name one run of it precisely; nothing is sent.

        Raises:
            JobError, ConfigError: The job or a setting is wrong.
        """
        return plan_of(self, run_key=run_key, params=params, on_rerun=on_rerun)


def _until(timeout_s: float | None) -> datetime:
    bound = steps.LONGEST_WAIT if timeout_s is None else timedelta(seconds=timeout_s)
    return datetime.now(UTC) + bound
