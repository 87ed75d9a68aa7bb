"""The steps of a job apart: quote, submit, land, cancel. All four share one run.

Their run key is by default the DAG's and the run's (and the map index), without the task, so
that the steps of one DAG run find each other. Two runs of one job in one DAG run need run keys.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION
from airflow_provider_batchrouter.failing import as_airflow
from airflow_provider_batchrouter.hooks import BatchrouterHook
from airflow_provider_batchrouter.identity import run_key_of
from airflow_provider_batchrouter.killing import cancel_if_decided
from airflow_provider_batchrouter.landed import check_share, tell_assets
from airflow_provider_batchrouter.lineage import TableLineage
from airflow_provider_batchrouter.operators.job_task import JobTask

_SHOWN = 8


class BatchrouterQuoteOperator(JobTask):
    """Builds the manifest and locks a price; sends no rows, buys nothing.

    XCom: ``{"total_usd", "committed_usd", "budget_usd", "fits", "item_count", "row_count",
    "lanes", "why", "expires_at", "job", "run_key"}``, money as decimal strings.

    Args:
        on_over_budget: When the price does not fit into the budget: ``return`` it all the same,
            ``skip`` the task (and what hangs on it), or ``fail``.
        **kwargs: Of `BatchrouterRunJobOperator`: ``job``, ``job_params``, ``run_key``, …

    Example:
        >>> price = BatchrouterQuoteOperator(task_id="quote", job="label.yaml")  # doctest: +SKIP
        >>> @task.branch                                                         # doctest: +SKIP
        ... def cheap_enough(quote: dict) -> str:
        ...     return "submit" if Decimal(quote["total_usd"]) < 20 else "ask"
    """

    def __init__(
        self, *, on_over_budget: Literal["return", "skip", "fail"] = "return", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if on_over_budget not in {"return", "skip", "fail"}:
            raise ValueError(f"on_over_budget: {on_over_budget!r}; use return, skip or fail")
        self.on_over_budget = on_over_budget

    def execute(self, context: Any) -> dict[str, Any]:
        """Ask for the price."""
        from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - rarely needed
            AirflowFailException,
            AirflowSkipException,
        )

        from batchrouter.money import format_usd  # noqa: PLC0415 - a DAG file need not pay

        with self.open_run(context) as run:
            quote = run.quote()
            status = run.status()
        told = {
            "job": status.job,
            "run_key": status.run_key,
            "total_usd": format_usd(quote.total_usd),
            "committed_usd": format_usd(quote.committed_usd),
            "budget_usd": None if quote.budget_usd is None else format_usd(quote.budget_usd),
            "fits": quote.fits,
            "item_count": quote.item_count,
            "row_count": quote.row_count,
            "lanes": [f"{lane.provider}/{lane.model}" for lane in quote.lanes[:_SHOWN]],
            "why": quote.why[:500],
            "expires_at": quote.expires_at and quote.expires_at.isoformat(),
        }
        if not quote.fits and self.on_over_budget != "return":
            said = f"the price {told['total_usd']} is above the budget {told['budget_usd']} USD"
            raise (AirflowSkipException if self.on_over_budget == "skip" else AirflowFailException)(
                f"{said}; nothing was bought"
            )
        return told


class BatchrouterSubmitOperator(JobTask):
    """Buys the batches, inside the budget, and does not wait.

    XCom ``return_value`` and ``run``: ``{"job", "run_key", "batch_ids" (the first eight),
    "batch_count", "row_count", "committed_usd"}``; a sensor takes it as its ``submission``.

    Args:
        **kwargs: Of `BatchrouterRunJobOperator`: ``job``, ``job_params``, ``run_key``, …
    """

    def execute(self, context: Any) -> dict[str, Any]:
        """Buy what is not bought yet; a retry adopts what an earlier try has bought."""
        with self.open_run(context) as run:
            run.submit()
            return self.tell_of_batches(context, run)

    def on_kill(self) -> None:
        """Cancel what was bought if a person ended the task for good in mid-purchase."""
        if self._names:
            cancel_if_decided(
                self._names, self._attempt, conn_id=self.batchrouter_conn_id, on_timeout="leave"
            )


class BatchrouterLandOperator(TableLineage, JobTask):
    """Collects and lands batches that have ended; buys nothing.

    XCom: the receipt, as of `BatchrouterRunJobOperator`. Rows that failed are resent only by
    that operator, which buys: here a job's ``retry_failed`` has no effect.

    Args:
        again: Write the table anew from the run folder, though it was landed.
        max_failed_share: Fail, after landing, when a larger share of the rows did not succeed.
        **kwargs: Of `BatchrouterRunJobOperator`: ``job``, ``job_params``, ``run_key``, …

    Raises:
        WaitTimeoutError: A batch is still open; the task's own retries may try again.
    """

    def __init__(
        self, *, again: bool = False, max_failed_share: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.again = again
        self.max_failed_share = max_failed_share

    def execute(self, context: Any) -> dict[str, Any]:
        """Land the table."""
        with self.open_run(context) as run:
            receipt = run.land(again=self.again)
            plain = receipt.to_dict()
            self.landed = plain
            tell_assets(self, context, plain)
            check_share(receipt, self.max_failed_share)
        return plain


class BatchrouterCancelOperator(BaseOperator):
    """Stops a run: nothing more is bought, what is open is asked to cancel.

    For a teardown: a run that is landed, or was never opened, is left as it is. XCom: True when
    something was cancelled.

    Args:
        job_name: The job's own ``name``.
        of_task: The task id of a `BatchrouterRunJobOperator` whose run is meant; left out for
            the run of the steps.
        run_key: The run key, where that was given.
        batchrouter_conn_id: The connection.
        **kwargs: Of `BaseOperator`.

    Example:
        >>> clean_up = BatchrouterCancelOperator(                  # doctest: +SKIP
        ...     task_id="clean_up", job_name="label-tickets", of_task="label"
        ... ).as_teardown(setups=label)
    """

    template_fields: Collection[str] = ("job_name", "of_task", "run_key", "batchrouter_conn_id")
    ui_color = "#fce8e6"

    def __init__(
        self,
        *,
        job_name: str,
        of_task: str | None = None,
        run_key: str | None = None,
        batchrouter_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_name = job_name
        self.of_task = of_task
        self.run_key = run_key
        self.batchrouter_conn_id = batchrouter_conn_id

    def execute(self, context: Any) -> bool:
        """Cancel the run, whoever owns it."""
        from batchrouter.run import cancel_run  # noqa: PLC0415 - a DAG file need not pay

        key = self.run_key or run_key_of(context, with_task=False)
        if not self.run_key and self.of_task:
            key = run_key_of({**context, "ti": _Sibling(context, self.of_task)}, with_task=True)
        with as_airflow():
            return cancel_run(
                self.job_name,
                key,
                settings=BatchrouterHook(self.batchrouter_conn_id).run_settings,
                reason=f"cancelled by task {context['ti'].task_id}",
            )


class _Sibling:
    """Another task of the same DAG run, as far as a run key needs it."""

    def __init__(self, context: Mapping[str, Any], task_id: str) -> None:
        ti = context["ti"]
        self.dag_id, self.task_id, self.run_id = ti.dag_id, task_id, ti.run_id
        self.map_index = getattr(ti, "map_index", -1)
