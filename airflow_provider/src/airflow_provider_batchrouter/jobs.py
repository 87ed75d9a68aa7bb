"""What an operator was given as its job → a `Job`; its connections → Airflow's."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from batchrouter import Job

JobLike = "Job | str | os.PathLike[str] | Mapping[str, Any]"

_DRIVERS = {"postgres": "postgresql", "mssql": "mssql", "mysql": "mysql", "sqlite": "sqlite"}
"""Airflow's connection types whose driver has another name, or whose path is not a database."""


def load_job(
    given: Any,
    *,
    params: Mapping[str, Any] | None = None,
    budget: Any = None,
    folder: str = "",
) -> "Job":
    """Make the job of one execution.

    Args:
        given: A `Job`, a mapping, or the path of a job file.
        params: Values for its parameters.
        budget: In USD, instead of the job's own; None keeps that.
        folder: What a relative path is relative to: the DAG file's own folder.

    Raises:
        JobError: The job is wrong; every problem has its field, and its line in a file.
    """
    from batchrouter import Job  # noqa: PLC0415 - a DAG file must not pay for it

    if isinstance(given, str | os.PathLike):
        job = Job.from_file(Path(folder, given))
    else:
        job = Job.model_validate(given)
    if params:
        job = job.with_params(params)
    if budget is None:
        return job
    fields = {name: getattr(job, name) for name in Job.model_fields}
    return Job.model_validate({**fields, "budget": budget})


@contextmanager
def airflow_connections(job: "Job") -> Generator[None]:
    """Let the connections that the job names stand for Airflow's, of its source and its table.

    A variable that is set already wins. The variables are taken out again: a task's process
    starts others, which need not know.
    """
    from batchrouter.job.source import (  # noqa: PLC0415 - a DAG file must not pay for it
        connection_variable,
    )

    added: list[str] = []
    try:
        for name in job.connections:
            variable = connection_variable(name)
            if variable not in os.environ:
                os.environ[variable] = _url_of(name)
                added.append(variable)
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _url_of(conn_id: str) -> str:
    """What the connection is for core: a URL, or JSON where there are options for a driver.

    Raises:
        ConfigError: There is no such connection.
    """
    from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - with the task
        AirflowNotFoundException,
        BaseHook,
    )

    from batchrouter.errors import ConfigError  # noqa: PLC0415 - a DAG file must not pay for it

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConfigError(
            f"the job names the connection {conn_id!r}, and Airflow has none with this id; add it,"
            f" or set BATCHROUTER_CONNECTION_{conn_id.upper()}"
        ) from None
    driver = _DRIVERS.get(connection.conn_type or "", connection.conn_type or "")
    options = {
        name: str(value)
        for name, value in connection.extra_dejson.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    if "adbc_uri" in options:
        uri = options.pop("adbc_uri")
        return json.dumps({**options, "driver": options.pop("adbc_driver", driver), "uri": uri})
    return _uri(driver, connection, options)


def _uri(driver: str, connection: Any, options: Mapping[str, str]) -> str:
    user = quote(connection.login or "", safe="")
    if connection.password:
        user += f":{quote(connection.password, safe='')}"
    if driver in {"sqlite", "duckdb"}:
        path = connection.host or connection.schema or ""
        return f"{driver}:///{path}"
    port = f":{connection.port}" if connection.port else ""
    place = f"{connection.host or ''}{port}/{connection.schema or ''}"
    query = f"?{urlencode(options)}" if options else ""
    return f"{driver}://{user}{'@' if user else ''}{place}{query}"
