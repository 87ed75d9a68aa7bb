"""What every task around one job has: the job, its run key, its account, its run."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION
from airflow_provider_batchrouter.failing import as_airflow
from airflow_provider_batchrouter.hooks import BatchrouterHook
from airflow_provider_batchrouter.identity import attempt_of, demand_of, run_key_of
from airflow_provider_batchrouter.jobs import airflow_connections, load_job
from airflow_provider_batchrouter.links import LINK_KEY, BatchrouterBatchLink, batch_page

if TYPE_CHECKING:
    from batchrouter import Job, Run

RUN_KEY = "run"
"""The XCom key under which the run's names and batches stand from the purchase on."""

_SHOWN = 8


class JobTask(BaseOperator):
    """Base of the operators; see `BatchrouterRunJobOperator` for the arguments."""

    template_fields: Collection[str] = (
        "job_params",
        "run_key",
        "budget",
        "on_rerun",
        "batchrouter_conn_id",
    )
    operator_extra_links = (BatchrouterBatchLink(),)
    ui_color = "#e8f0fe"

    _is_a_run_of_its_own: ClassVar[bool] = False

    def __init__(
        self,
        *,
        job: Any,
        job_params: Mapping[str, Any] | None = None,
        run_key: str | None = None,
        budget: str | float | None = None,
        on_rerun: str = "resume",
        batchrouter_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.job_params = job_params
        self.run_key = run_key
        self.budget = budget
        self.on_rerun = on_rerun
        self.batchrouter_conn_id = batchrouter_conn_id
        self._names: dict[str, str] | None = None
        self._attempt: str | None = None
        self.source_location: str | None = None
        self.table_location: str | None = None

    def run_key_in(self, context: Mapping[str, Any]) -> str:
        """The run key: the one that was given, or what Airflow calls this execution."""
        return self.run_key or run_key_of(context, with_task=self._is_a_run_of_its_own)

    def load(self, context: Mapping[str, Any]) -> "Job":
        """The job of this execution."""
        job = load_job(
            self.given_job(context),
            params=self.job_params,
            budget=self.budget,
            folder=folder_of(context),
        )
        source = job.resolved_source
        self.source_location = source if isinstance(source, str) else None
        self.table_location = str(job.resolved_sink).removeprefix("parquet:")
        return job

    def given_job(self, context: Mapping[str, Any]) -> Any:
        """What the job is made from; `@task.batchrouter` puts its function's table in."""
        del context
        return self.job

    @contextmanager
    def open_run(self, context: Mapping[str, Any]) -> "Generator[Run]":
        """Open the run, claim it for this try, and map what goes wrong.

        Raises:
            AirflowFailException: What a retry cannot cure.
            BatchrouterError: What it can.
        """
        with as_airflow():
            job = self.load(context)
            hook = BatchrouterHook(self.batchrouter_conn_id)
            self._names = {"job": job.name, "run_key": self.run_key_in(context)}
            self._attempt = attempt_of(context)
            with airflow_connections(job), self._opened(job, hook, context) as run:
                yield run

    def _opened(self, job: "Job", hook: BatchrouterHook, context: Mapping[str, Any]) -> "Run":
        from batchrouter import Run  # noqa: PLC0415 - a DAG file must not pay for it

        key = self.run_key_in(context)
        if self.on_rerun != "resume":
            # Granted once for the first run and once for each clear, however often it is retried.
            Run.open(
                job,
                run_key=key,
                settings=hook.run_settings,
                attempt=demand_of(context),
                on_rerun=self.on_rerun,  # type: ignore[arg-type]  # core checks it
            ).close()
        return Run.open(job, run_key=key, settings=hook.run_settings, attempt=self._attempt)

    def tell_of_batches(self, context: Mapping[str, Any], run: "Run") -> dict[str, Any]:
        """Push the run's names and batches, and the address behind the link; return the names."""
        status = run.status()
        told: dict[str, Any] = {
            "job": status.job,
            "run_key": status.run_key,
            "batch_ids": list(status.batch_ids[:_SHOWN]),
            "batch_count": len(status.batch_ids),
            "row_count": status.row_count,
            "committed_usd": status.to_dict()["committed_usd"],
        }
        self.log.info(
            "run %r of job %r: %d batches (%s), %s rows, at most %s USD",
            status.run_key,
            status.job,
            len(status.batch_ids),
            ", ".join(status.batch_ids[-3:]) or "none yet",
            status.row_count,
            told["committed_usd"],
        )
        ti = context["ti"]
        ti.xcom_push(key=RUN_KEY, value=told)
        if status.batch_ids:
            hook = BatchrouterHook(self.batchrouter_conn_id)
            page = batch_page(hook.settings.base_url, hook.extra, status.batch_ids[-1])
            ti.xcom_push(key=LINK_KEY, value=page)
        return told


def folder_of(context: Mapping[str, Any]) -> str:
    """The DAG file's own folder, to which a job file's relative path is relative."""
    fileloc = getattr(context.get("dag"), "fileloc", None)
    return str(Path(fileloc).parent) if fileloc else ""
