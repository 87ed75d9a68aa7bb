"""Waits for batches that another task bought."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue, conf

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION
from airflow_provider_batchrouter.failing import as_airflow
from airflow_provider_batchrouter.hooks import BatchrouterHook
from airflow_provider_batchrouter.triggers.batch import DEADLINE, ERROR, BatchrouterBatchTrigger

if TYPE_CHECKING:
    from batchrouter.run import WaitMode

_SHOWN = 20
_BACKSTOP = timedelta(minutes=10)


class BatchrouterBatchSensor(BaseSensorOperator):
    """Succeeds when all batches are terminal; pokes, reschedules, or defers.

    XCom: ``{batch id: state}`` of the first twenty batches.

    Args:
        batch_id: One id or several; templated.
        submission: What `BatchrouterSubmitOperator` returned, or a run's ``run`` XCom, instead:
            all batches of that run are waited for.
        fail_on: States that fail the sensor for good. A batch that failed, was cancelled or
            expired may still have results: give ``()`` to go on to landing all the same.
        batchrouter_conn_id: The connection.
        deferrable: Wait in the triggerer. Default: ``[operators] default_deferrable``.
        wait: ``both``, ``poll`` or ``webhook``; where it is deferred.
        **kwargs: Of `BaseSensorOperator`: ``mode``, ``poke_interval``, ``timeout``,
            ``soft_fail``.
    """

    template_fields: Collection[str] = ("batch_id", "submission", "batchrouter_conn_id")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        batch_id: str | Sequence[str] | None = None,
        submission: Any = None,
        fail_on: Sequence[str] = ("failed", "cancelled", "expired"),
        batchrouter_conn_id: str = DEFAULT_CONNECTION,
        deferrable: bool | None = None,
        wait: "WaitMode" = "both",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (batch_id is None) == (submission is None):
            raise ValueError("give either batch_id or submission")
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.batch_id = batch_id
        self.submission = submission
        self.fail_on = tuple(fail_on)
        self.batchrouter_conn_id = batchrouter_conn_id
        self.deferrable = deferrable
        self.wait: WaitMode = wait

    def poke(self, context: Any) -> PokeReturnValue:
        """Ask for each batch that is not known to have ended."""
        del context
        with as_airflow():
            states = self._states()
        open_count = sum(not ended for _, ended in states.values())
        self.log.info("%d of %d batches are open", open_count, len(states))
        shown = {batch_id: state for batch_id, (state, _) in list(states.items())[:_SHOWN]}
        return PokeReturnValue(is_done=open_count == 0, xcom_value=shown)

    def execute(self, context: Any) -> Any:
        """Poke once; then defer, or go on as any sensor does."""
        if not self.deferrable:
            return super().execute(context)
        answer = self.poke(context)
        if answer.is_done:
            return answer.xcom_value
        with as_airflow():
            from batchrouter.run import check_mode  # noqa: PLC0415 - a DAG file need not pay

            check_mode(BatchrouterHook(self.batchrouter_conn_id).settings, self.wait)
            batch_ids = self._batch_ids()
        until = datetime.now(UTC) + timedelta(seconds=float(self.timeout))
        return self.defer(
            trigger=BatchrouterBatchTrigger(
                batch_ids=batch_ids,
                until=until.isoformat(),
                batchrouter_conn_id=self.batchrouter_conn_id,
                wait=self.wait,
            ),
            method_name="execute_complete",
            timeout=until - datetime.now(UTC) + _BACKSTOP,
        )

    def execute_complete(self, context: Any, event: Mapping[str, Any] | None = None) -> Any:
        """See how the batches have ended; the event is only a hint."""
        from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - rarely needed
            AirflowException,
            AirflowSkipException,
            AirflowTaskTimeout,
        )

        if not event or "status" not in event:
            raise ValueError(f"the trigger's event says nothing: {event!r}")
        answer = self.poke(context)
        if answer.is_done:
            return answer.xcom_value
        if event["status"] == ERROR:
            raise AirflowException(f"{event['code']}: {event['message']}")
        said = f"the batches have not ended within {self.timeout} s; they go on at the router"
        if event["status"] == DEADLINE:
            raise (AirflowSkipException if self.soft_fail else AirflowTaskTimeout)(said)
        # An event of the inbox came before the API agreed.
        return self.execute(context)

    def _batch_ids(self) -> tuple[str, ...]:
        """All ids; a submission tells only the first eight, and its run's journal has the rest.

        Raises:
            ConfigError: Neither says which batches.
        """
        from batchrouter.errors import ConfigError  # noqa: PLC0415 - a DAG file need not pay

        if self.batch_id is not None:
            ids = [self.batch_id] if isinstance(self.batch_id, str) else list(self.batch_id)
            if not all(ids) or not ids:
                raise ConfigError(f"batch_id: {self.batch_id!r} names no batch")
            return tuple(ids)
        told = self.submission
        if not isinstance(told, Mapping) or not told.get("batch_ids"):
            raise ConfigError(f"submission: {told!r} is not what a submission tells")
        if told["batch_count"] <= len(told["batch_ids"]):
            return tuple(told["batch_ids"])
        from batchrouter.run import list_runs  # noqa: PLC0415 - rarely needed

        settings = BatchrouterHook(self.batchrouter_conn_id).run_settings
        runs = list_runs(
            settings.runs_url, job=told["job"], storage_options=settings.storage_options
        )
        return next(each.batch_ids for each in runs if each.run_key == told["run_key"])

    def _states(self) -> dict[str, tuple[str, bool]]:
        """Each batch's state, and whether it has ended.

        Raises:
            BatchFailedError: One has ended in a state of `fail_on`.
        """
        from batchrouter.errors import BatchFailedError  # noqa: PLC0415 - a DAG file need not pay

        states: dict[str, tuple[str, bool]] = {}
        with BatchrouterHook(self.batchrouter_conn_id).get_client() as client:
            for batch_id in self._batch_ids():
                batch = client.retrieve_batch(batch_id)
                states[batch_id] = (batch.state, batch.is_terminal)
                if batch.state in self.fail_on:
                    why = f": {batch.error.message}" if batch.error else ""
                    raise BatchFailedError(f"batch {batch_id} is {batch.state}{why}")
        return states
