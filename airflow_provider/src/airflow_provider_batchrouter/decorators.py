"""``@task.batchrouter``: the function returns a table, the task runs a job over it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_batchrouter.hooks import BatchrouterHook
from airflow_provider_batchrouter.operators.run_job import BatchrouterRunJobOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskDecorator


class BatchrouterDecoratedOperator(DecoratedOperator, BatchrouterRunJobOperator):
    """Calls the function when the run is built, and not again."""

    template_fields: Sequence[str] = (  # type: ignore[override]  # its two bases differ
        *DecoratedOperator.template_fields,
        *BatchrouterRunJobOperator.template_fields,
    )
    custom_operator_name = "@task.batchrouter"

    def execute(self, context: Any) -> Any:
        """See `BatchrouterRunJobOperator.execute`; the function is called by the build."""
        return BatchrouterRunJobOperator.execute(self, context)

    def given_job(self, context: Mapping[str, Any]) -> Any:
        """The job with the function's table in the place of its source."""
        settings = BatchrouterHook(self.batchrouter_conn_id).settings
        table = CalledTable(lambda: self._call(context), settings.storage_options)
        if isinstance(self.job, Mapping):
            return {**self.job, "source": table}
        from airflow_provider_batchrouter.jobs import load_job  # noqa: PLC0415 - likewise
        from airflow_provider_batchrouter.operators.job_task import folder_of  # noqa: PLC0415
        from batchrouter import Job  # noqa: PLC0415 - a DAG file must not pay for it

        job = load_job(self.job, folder=folder_of(context))
        fields = {name: getattr(job, name) for name in Job.model_fields}
        budget = "none" if job.budget is None else job.budget
        return Job.model_validate({**fields, "budget": budget, "source": table})

    def _call(self, context: Mapping[str, Any]) -> Any:
        kwargs = determine_kwargs(self.python_callable, self.op_args, {**context, **self.op_kwargs})
        return self.python_callable(*self.op_args, **kwargs)


class CalledTable:
    """A table that a function makes when it is first read, as the build does once.

    Args:
        call: Returns anything with ``__arrow_c_stream__``, or the path or URL of a table.
        storage_options: Of fsspec, to open that.
    """

    def __init__(self, call: Callable[[], Any], storage_options: Mapping[str, Any]) -> None:
        self._call = call
        self._storage_options = storage_options
        self._made: Any = None

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """See the Arrow PyCapsule interface."""
        if self._made is None:
            self._made = self._call()
        return self._table().__arrow_c_stream__(requested_schema)

    def _table(self) -> Any:
        import os  # noqa: PLC0415 - with the task

        from batchrouter.errors import SourceError  # noqa: PLC0415 - a DAG file must not pay

        if isinstance(self._made, str | os.PathLike):
            return self._opened(str(self._made))
        if hasattr(self._made, "__arrow_c_stream__"):
            return self._made
        raise SourceError(
            f"the function of @task.batchrouter returned {type(self._made).__name__}; return a"
            " table (pyarrow, polars, pandas, DuckDB) or the path or URL of one"
        )

    def _opened(self, location: str) -> Any:
        import pyarrow as pa  # noqa: PLC0415 - with the task

        from batchrouter.manifest.sources import open_location  # noqa: PLC0415 - likewise

        source = open_location(location, storage_options=self._storage_options)
        return pa.RecordBatchReader.from_batches(source.schema, source.batches(source.schema.names))


def batchrouter_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> "TaskDecorator":
    """Run a job over the table that the function returns.

    Args:
        python_callable: The function: returns a table with ``__arrow_c_stream__`` (pyarrow,
            polars, pandas, DuckDB), or the path or URL of one.
        **kwargs: Of `BatchrouterRunJobOperator`; the job's own ``source`` is not read, and a
            mapping may leave it out.

    Example:
        >>> @task.batchrouter(job={…})                            # doctest: +SKIP
        ... def label(ds: str) -> pl.DataFrame:
        ...     return pl.read_parquet(f"tickets/{ds}.parquet")
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=False,
        decorated_operator_class=BatchrouterDecoratedOperator,
        **kwargs,
    )
