"""What a job may name as its sink, and which modes each kind of table can keep; nothing is opened.

A kind is the text before the first colon; a path or a URL without one is a Parquet directory.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from batchrouter.job.problems import did_you_mean
from batchrouter.job.source import connection_problem

Mode = Literal["replace_run", "append", "overwrite", "merge"]

_KIND = re.compile(r"^([a-z][a-z0-9+]+):(?!//)")
_LIKELY = ("mysql", "snowflake", "bigquery", "redshift", "mssql", "oracle")
_PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class SinkKind:
    """A kind of table.

    Attributes:
        form: How such a sink is written.
        modes: What it can do as one atomic commit.
        refusal: Why it cannot do the others.
    """

    form: str
    modes: tuple[Mode, ...] = ("replace_run", "append", "overwrite", "merge")
    refusal: str = ""


KINDS: dict[str, SinkKind] = {
    _PARQUET: SinkKind(
        "parquet:<folder>",
        ("replace_run", "append"),
        "a folder of Parquet files has no commit over more than one file",
    ),
    "delta": SinkKind("delta:<path or URL>"),
    "iceberg": SinkKind("iceberg:<catalog>.<namespace>.<table>"),
    "duckdb": SinkKind("duckdb:<file>#<table>"),
    "postgresql": SinkKind("postgresql:<connection>#<table>"),
    "sqlite": SinkKind("sqlite:<connection>#<table>"),
}


def kind_of(sink: str) -> str:
    """Name the kind of a sink.

    Example:
        >>> kind_of("delta:lake/t"), kind_of("s3://lake/t"), kind_of("lake/t")
        ('delta', 'parquet', 'parquet')
    """
    found = _KIND.match(sink)
    return found.group(1) if found else _PARQUET


def place_of(sink: str) -> str:
    """Give what follows the kind.

    Example:
        >>> place_of("delta:lake/t"), place_of("s3://lake/t")
        ('lake/t', 's3://lake/t')
    """
    found = _KIND.match(sink)
    return sink[found.end() :] if found else sink


def connection_of(sink: str) -> str | None:
    """Name the connection that a sink is written through; None where it needs none.

    Example:
        >>> connection_of("sqlite:warehouse#labels"), connection_of("duckdb:lake.db#labels")
        ('warehouse', None)
    """
    if "<connection>" not in KINDS[kind_of(sink)].form:
        return None
    return place_of(sink).rpartition("#")[0]


def checked_sink(sink: Any) -> Any:
    """Check a sink's form.

    Raises:
        ValueError: It is none; the message says how it is written.
    """
    if isinstance(sink, os.PathLike):
        return os.fspath(sink)
    if not isinstance(sink, str) or not sink:
        raise ValueError(f"must be the path or URL of a Parquet directory, or {_forms()}")
    scheme = sink.partition("://")[0] if "://" in sink else ""
    database = scheme.partition("+")[0].replace("postgres", "postgresql", scheme == "postgres")
    if database in KINDS and database != _PARQUET:
        raise ValueError(
            f"a database is named by a connection, whose URL stands in the environment: write"
            f" {KINDS[database].form}"
        )
    kind = database if database in _LIKELY else kind_of(sink)
    if kind not in KINDS:
        raise ValueError(f"there is no sink {kind!r}; {did_you_mean(kind, KINDS)}")
    if told := _place_problem(kind, place_of(sink)):
        raise ValueError(f"{told}: write {KINDS[kind].form}")
    return sink


def _place_problem(kind: str, place: str) -> str | None:
    if not place:
        return f"names nothing after {kind}:"
    if kind == "iceberg":
        is_named = place.count(".") >= 2 and "/" not in place and all(place.split("."))  # noqa: PLR2004 - catalog.namespace.table
        return None if is_named else "names no catalog, namespace and table"
    if "#" not in KINDS[kind].form:
        return None
    before, _, table = place.rpartition("#")
    if not before or not table:
        return "names no table after #"
    if kind != "duckdb" and "${" not in before and connection_problem(before):
        return "has no name of a connection before #"
    return None


def mode_problems(sink: str, mode: Mode) -> Iterator[str]:
    """Yield what a kind of table cannot do."""
    kind = KINDS[kind_of(sink)]
    if mode not in kind.modes:
        able = ", ".join(name for name, other in KINDS.items() if mode in other.modes)
        yield (
            f"mode: {kind_of(sink)} cannot {mode}: {kind.refusal}; use {' or '.join(kind.modes)},"
            f" or a sink that can ({able})"
        )


def _forms() -> str:
    return ", ".join(each.form for name, each in KINDS.items() if name != _PARQUET)
