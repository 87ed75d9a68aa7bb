"""The whole job in one task: buys once, waits without a worker, lands the table."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import conf

from airflow_provider_batchrouter.failing import as_airflow
from airflow_provider_batchrouter.killing import cancel_if_decided
from airflow_provider_batchrouter.landed import check_share, tell_assets
from airflow_provider_batchrouter.lineage import TableLineage
from airflow_provider_batchrouter.operators.job_task import JobTask
from airflow_provider_batchrouter.triggers.batch import ERROR, BatchrouterBatchTrigger

if TYPE_CHECKING:
    from batchrouter import Receipt, Run, Waiting
    from batchrouter.errors import BatchrouterError
    from batchrouter.run import WaitMode

_log = logging.getLogger(__name__)

_PATIENCE = timedelta(minutes=15)
_PAUSE = timedelta(seconds=30)
_BACKSTOP = timedelta(minutes=10)
_NO_TIMEOUT = timedelta(hours=72)


class BatchrouterRunJobOperator(TableLineage, JobTask):
    """Runs a job over a table: one price locked, one batch bought, one table landed.

    However often it is retried, cleared or killed, one DAG run buys each item once. XCom
    ``return_value`` is the receipt (ids, counts, money, under 2 KB); ``run`` has the run's names
    and batches from the purchase on.

    Args:
        job: A `batchrouter.Job`, a mapping, or the path of a job file, relative to the DAG
            file. Never rendered by Jinja: prompts hold braces.
        job_params: Values for the job's parameters; templated, so that ``{{ ds }}`` picks the
            partition.
        run_key: What the execution is called; templated. Default: DAG, task, run and map index.
        budget: The most that it may cost in USD, instead of the job's; templated.
        on_rerun: ``resume``; or ``rebuy``, by which the first run and each clear buy anew what
            has ended, and a retry does not. Templated.
        batchrouter_conn_id: The connection.
        deferrable: Wait in the triggerer. Default: ``[operators] default_deferrable``.
        wait: ``both`` (events wake it, polling is the safety net), ``poll`` or ``webhook``.
        timeout: The longest wait, on the wall clock from the purchase on; default 72 hours.
        on_timeout: ``cancel`` what is open, or ``leave`` it. Either fails the task for good;
            clearing it with a longer timeout goes on with the same batch.
        cancel_on_kill: Cancel when a person marks the task failed, skipped or successful. A
            clear, a worker or a triggerer that restarts cancel nothing.
        max_failed_share: Fail, after landing, when a larger share of the rows did not succeed.
        **kwargs: Of `BaseOperator`.

    Raises:
        AirflowFailException: What a retry cannot cure: a wrong job, a price above the budget, a
            refused key, a run that has timed out.

    Example:
        >>> BatchrouterRunJobOperator(                            # doctest: +SKIP
        ...     task_id="label", job="label.yaml", job_params={"day": "{{ ds }}"}
        ... )
    """

    _is_a_run_of_its_own: ClassVar[bool] = True

    def __init__(
        self,
        *,
        deferrable: bool | None = None,
        wait: "WaitMode" = "both",
        timeout: timedelta | float | None = None,
        on_timeout: Literal["cancel", "leave"] = "leave",
        cancel_on_kill: bool = True,
        max_failed_share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_timeout not in {"cancel", "leave"}:
            raise ValueError(f"on_timeout: {on_timeout!r} is unknown; use 'cancel' or 'leave'")
        if wait not in {"both", "poll", "webhook"}:
            raise ValueError(f"wait: {wait!r} is unknown; use 'both', 'poll' or 'webhook'")
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        self.wait: WaitMode = wait
        self.timeout = timedelta(seconds=timeout) if isinstance(timeout, int | float) else timeout
        self.on_timeout = on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.max_failed_share = max_failed_share

    def execute(self, context: Any) -> dict[str, Any]:
        """Do all that can be done now, and wait or defer for the rest."""
        with self.open_run(context) as run:
            return self._go_on(context, run, failing_since=None)

    def execute_complete(self, context: Any, event: Mapping[str, Any] | None = None) -> Any:
        """Go on after the trigger: land, or wait again for a round of retries.

        The event is a hint; the run's folder and the API say how it stands.
        """
        if not event or "status" not in event:
            raise ValueError(f"the trigger's event says nothing: {event!r}")
        if event["status"] == ERROR:
            _log.warning("the triggerer could not wait: %s: %s", event["code"], event["message"])
        with self.open_run(context) as run:
            return self._go_on(context, run, failing_since=_since(event))

    def on_kill(self) -> None:
        """Cancel the run if a person ended the task for good, and this try still owns it."""
        if self._names and self.cancel_on_kill:
            cancel_if_decided(
                self._names,
                self._attempt,
                conn_id=self.batchrouter_conn_id,
                on_timeout=self.on_timeout,
            )

    def _go_on(self, context: Any, run: "Run", *, failing_since: datetime | None) -> dict[str, Any]:
        from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - a DAG file need not pay

        self._check_wait()
        try:
            step = run.advance()
        except BatchrouterError as error:
            self._bear(context, run, error, failing_since)
            raise
        from batchrouter import Waiting  # noqa: PLC0415 - likewise

        if not isinstance(step, Waiting):
            return self._finish(context, step.receipt)
        self.tell_of_batches(context, run)
        self._check_time(run)
        if self.deferrable:
            self._defer_for(context, run, step)
        left_s = (self._end_at(run) - datetime.now(UTC)).total_seconds()
        try:
            receipt = run.execute(wait=self.wait, timeout_s=max(0.1, left_s))
        except BatchrouterError:
            self._check_time(run)
            raise
        return self._finish(context, receipt)

    def _check_wait(self) -> None:
        from airflow_provider_batchrouter.hooks import BatchrouterHook  # noqa: PLC0415 - likewise
        from batchrouter.run import check_mode  # noqa: PLC0415 - a DAG file need not pay

        check_mode(BatchrouterHook(self.batchrouter_conn_id).settings, self.wait)

    def _bear(
        self, context: Any, run: "Run", error: "BatchrouterError", since: datetime | None
    ) -> None:
        """Defer through a failure that passes, once something is bought, for a quarter of an hour.

        Without it a router that restarts would use up the task's retries.
        """
        if not (error.retryable and self.deferrable and run.status().batch_ids):
            return
        now = datetime.now(UTC)
        since = since or now
        if now - since > _PATIENCE or now >= self._end_at(run):
            return
        _log.warning("going on in %d s: %s", _PAUSE.seconds, error)
        self._defer(context, (), now + _PAUSE, {"failing_since": since.isoformat()})

    def _defer_for(self, context: Any, run: "Run", step: "Waiting") -> None:
        until = min(step.deadline_at, self._end_at(run))
        self._defer(context, step.batch_ids, until, {})

    def _defer(
        self, context: Any, batch_ids: tuple[str, ...], until: datetime, passed_on: dict[str, Any]
    ) -> None:
        ti = context["ti"]
        task = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id}
        self.defer(
            trigger=BatchrouterBatchTrigger(
                batch_ids=batch_ids,
                until=until.isoformat(),
                batchrouter_conn_id=self.batchrouter_conn_id,
                wait=self.wait,
                run=self._names if self.cancel_on_kill else None,
                attempt=self._attempt,
                of_task={**task, "map_index": getattr(ti, "map_index", -1)},
                passed_on=passed_on,
            ),
            method_name="execute_complete",
            # The trigger's own time comes first; this ends a wait whose triggerer never came.
            timeout=until - datetime.now(UTC) + _BACKSTOP if self.timeout else None,
        )

    def _end_at(self, run: "Run") -> datetime:
        status = run.status()
        began_at = status.bought_at or status.opened_at or datetime.now(UTC)
        return began_at + (self.timeout or _NO_TIMEOUT)

    def _check_time(self, run: "Run") -> None:
        """Fail for good when the time is over, and cancel if that is what was asked for."""
        if datetime.now(UTC) < self._end_at(run):
            return
        from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - rarely needed
            AirflowFailException,
        )

        status = run.status()
        done = "they go on at the router"
        if self.on_timeout == "cancel":
            cancelled = run.cancel("the task timed out", attempt=self._attempt, grace_s=0)
            done = "they were asked to cancel" if cancelled else done
        raise AirflowFailException(
            f"run {status.run_key!r} has waited {self.timeout or _NO_TIMEOUT} for"
            f" {len(status.batch_ids)} batches ({', '.join(status.batch_ids[:3])}), and {done}."
            " Clear the task to land what came, or with a longer timeout to wait on; nothing is"
            " bought again."
        )

    def _finish(self, context: Any, receipt: "Receipt") -> dict[str, Any]:
        plain = receipt.to_dict()
        self.landed = plain
        tell_assets(self, context, plain)
        with as_airflow():
            check_share(receipt, self.max_failed_share)
        return plain


def _since(event: Mapping[str, Any]) -> datetime | None:
    told = event.get("failing_since")
    return datetime.fromisoformat(told) if told else None
