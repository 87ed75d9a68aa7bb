"""What a job may name as its source: a location, a query over a named connection, a table."""

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from batchrouter.job.engine import is_spark_frame
from batchrouter.job.params import ParamValue, filled
from batchrouter.job.part import JobPart
from batchrouter.job.problems import did_you_mean, name_of_type

_CONNECTION = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
_READ_BY_QUERY = ("duckdb", "mysql", "postgres", "postgresql", "snowflake", "sqlite")
_TABLES = ("delta:", "iceberg:")
_CODE_CHARACTERS = "'\"`\\;\0\r\n"
_COMMENTS = ("--", "/*")


class Query(JobPart):
    """A query over a named connection; its URL stands in the environment, never in a job.

    Example:
        >>> Query(sql="select * from tickets", connection="warehouse").variable
        'BATCHROUTER_CONNECTION_WAREHOUSE'
    """

    sql: str = Field(description="a query that gives a table")
    connection: str = Field(description="the name of a connection")

    @property
    def variable(self) -> str:
        """The environment variable that holds the connection's URL."""
        return connection_variable(self.connection)

    def with_values(self, params: Mapping[str, ParamValue]) -> "Query":
        """Fill the parameters in; a value that SQL could read as more than a value is refused.

        Raises:
            ValueError: One problem a line.
        """
        for name, value in params.items():
            text = value if isinstance(value, str) else ""
            unsafe = any(each in text for each in _CODE_CHARACTERS)
            if f"${{params.{name}}}" in self.sql and (unsafe or any(c in text for c in _COMMENTS)):
                raise ValueError(
                    f"the parameter {name!r} has characters that SQL could read as code (quotes,"
                    " backslashes, semicolons, comments); give a plain value"
                )
        return Query(sql=filled(self.sql, params), connection=self.connection)


def connection_variable(name: str) -> str:
    """Name the environment variable of a connection.

    Example:
        >>> connection_variable("warehouse")
        'BATCHROUTER_CONNECTION_WAREHOUSE'
    """
    return f"BATCHROUTER_CONNECTION_{name.upper()}"


def connection_problem(name: object) -> str | None:
    """Say why this is no name of a connection; what was given is not repeated, it may be a URL."""
    if isinstance(name, str) and _CONNECTION.match(name):
        return None
    return (
        "must be a name of letters, digits and underscores, such as warehouse: the URL that it"
        f" stands for is in the environment, as {connection_variable('warehouse')}"
    )


def checked_source(source: Any) -> Any:
    """Check a source's form; nothing is opened.

    Raises:
        ValueError: One problem a line; one about a field inside starts with its path.
    """
    if isinstance(source, Query):
        return source
    if isinstance(source, Mapping):
        return _checked_query(source)
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    is_table = hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__")
    # Older Spark frames have neither; their rows are not to come here anyway.
    is_table = is_table or is_spark_frame(source)
    if not is_table and not (isinstance(source, str) and source):
        raise ValueError(
            f"must be a path, a glob or a URL of a table, {{sql, connection}}, or an object with"
            f" __arrow_c_stream__ (polars, pandas, DuckDB, pyarrow), not {name_of_type(source)}"
        )
    if isinstance(source, str):
        _check_location(source)
    return source


def _check_location(source: str) -> None:
    scheme, colon, rest = source.partition(":")
    if colon and scheme.partition("+")[0] in _READ_BY_QUERY:
        raise ValueError(
            "a database is read by a query: write {sql: select …, connection: NAME}, and put its"
            f" URL into {connection_variable('NAME')}"
        )
    if colon and f"{scheme}:" in _TABLES and not rest:
        raise ValueError(f"names no table after {scheme}:")


def _checked_query(given: Mapping[Any, Any]) -> Query:
    fields = list(Query.model_fields)
    problems = [
        f".{name}: there is no such field; {did_you_mean(name, fields)}"
        for name in given
        if name not in fields
    ]
    sql, connection = given.get("sql"), given.get("connection")
    if not isinstance(sql, str) or not sql.strip():
        problems.append(".sql: is missing; give a query, such as select * from tickets")
    if "connection" not in given:
        problems.append(".connection: is missing; give the name of a connection")
    elif problem := connection_problem(connection):
        problems.append(f".connection: {problem}")
    if problems:
        raise ValueError("\n".join(problems))
    return Query(sql=str(sql), connection=str(connection))
