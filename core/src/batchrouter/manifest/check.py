"""What a job asks of its source, held against the source's columns; and the first lines."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchrouter.errors import BatchrouterError, SourceError
from batchrouter.job import Job, Raw
from batchrouter.job.engine import is_spark_frame
from batchrouter.job.problems import did_you_mean
from batchrouter.job.templates import Placeholder
from batchrouter.manifest.arrow import DataType
from batchrouter.manifest.keys import key_problem
from batchrouter.manifest.lines import line_shape, slots
from batchrouter.manifest.rendering import plain_type, rendering_problem
from batchrouter.manifest.rows import RowPreparer
from batchrouter.manifest.rowwriter import BadBodyError, line_writer
from batchrouter.manifest.sources import open_source

_PREVIEWED = 5


def check_job(job: Job, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Hold a job against its source: columns, their types, and the first rows.

    Returns:
        A sentence for each problem, `path: problem; what to do`; empty when there is none. A
        source that cannot be opened is one problem. Nothing is written.

    Example:
        >>> import pyarrow as pa
        >>> from batchrouter.job import Chat, Route
        >>> job = Job(name="t", source=pa.table({"id": [1]}), key="id", budget="1", sink="out",
        ...           request=Chat(user="{bdy}"), route=Route(models=["m"]))
        >>> check_job(job)
        ["request.user: the source has no column 'bdy'; there are: id"]
    """
    if job.engine is not None or is_spark_frame(job.source):
        return ["engine: the table is looked at on Spark alone: a dry run builds it there"]
    try:
        schema = open_source(job, storage_options=storage_options).schema
    except BatchrouterError as error:
        return [str(error)]
    problems = list(column_problems(job, schema))
    if problems or isinstance(job.source, pa.RecordBatchReader):
        return problems
    try:
        preview(job, _PREVIEWED, storage_options)
    except BatchrouterError as error:
        return [str(error)]
    return []


def check_columns(job: Job, schema: pa.Schema) -> None:
    """Refuse a job whose columns the source does not have.

    Raises:
        SourceError: With every problem.
    """
    problems = list(column_problems(job, schema))
    if problems:
        raise SourceError("\n".join(problems))


def column_problems(job: Job, schema: pa.Schema) -> Iterator[str]:
    """Yield a sentence for each column that is missing or of a type that cannot serve."""
    for name in dict.fromkeys(schema.names):
        if schema.names.count(name) > 1:
            yield f"source: has {schema.names.count(name)} columns named {name!r}; rename them"
    for path, names in (("key", job.key_columns), ("keep", job.keep)):
        for name in names:
            if name not in schema.names:
                yield f"{path}: the source has no column {name!r}; {_near(name, schema)}"
            elif path == "key" and (problem := key_problem(schema.field(name).type)):
                yield f"key: {name!r}: {problem}"
            elif path == "keep" and (problem := _keep_problem(schema.field(name).type)):
                yield f"keep: {name!r}: {problem}"
    for path, template in job.templates():
        for placeholder in template.placeholders:
            if problem := _placeholder_problem(placeholder, schema):
                yield f"{path}: {problem}"
    if isinstance(job.request, Raw) and (column := job.request.column):
        yield from _body_problems(column, schema)


def preview(job: Job, rows: int, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Render the first rows' lines, without the newline; rows that are skipped give none.

    Raises:
        SourceError: The table cannot be read, or lacks a column.
        ManifestError: A row cannot become a request.
    """
    source = open_source(job, storage_options=storage_options)
    check_columns(job, source.schema)
    if isinstance(job.source, pa.RecordBatchReader):
        raise SourceError("source: a record batch reader can be read only once; preview a table")
    shape = line_shape(job)
    writer = line_writer(shape)
    preparer = RowPreparer(job, slots(shape))
    lines, done = list[str](), 0
    for batch in source.batches(preparer.columns):
        prepared = preparer.prepare(batch.slice(0, rows - done), done)
        try:
            for piece in writer.write(prepared.slots):
                lines += str(piece.lines, "utf-8").split("\n")[:-1]
        except BadBodyError as error:
            raise error.in_source(prepared) from None
        done += len(batch)
        if done >= rows:
            break
    return lines


def _near(name: str, schema: pa.Schema) -> str:
    return did_you_mean(name, schema.names)


def _placeholder_problem(placeholder: Placeholder, schema: pa.Schema) -> str | None:
    column = placeholder.column
    if column not in schema.names:
        return f"the source has no column {column!r}; {_near(column, schema)}"
    kind, walked = plain_type(schema.field(column).type), column
    for name in placeholder.path[1:]:
        if not pt.is_struct(kind):
            return f"{walked!r} is {kind}, which has no fields; write {{{walked}}}"
        names = [each.name for each in kind.fields]
        if name not in names:
            return f"{walked!r} has no field {name!r}; {did_you_mean(name, names)}"
        kind, walked = kind.field(name).type, f"{walked}.{name}"
    problem = rendering_problem(kind)
    return problem and f"{walked!r}: {problem}"


def _body_problems(column: str, schema: pa.Schema) -> Iterator[str]:
    if column not in schema.names:
        yield f"request.body: the source has no column {column!r}; {_near(column, schema)}"
        return
    kind = plain_type(schema.field(column).type)
    is_text = pt.is_string(kind) or pt.is_large_string(kind)
    is_json = getattr(kind, "extension_name", None) == "arrow.json"
    if not (is_text or is_json or pt.is_struct(kind) or pt.is_map(kind)):
        yield f"request.body: {column!r} is {kind}; it must be JSON text, a struct or a map"
    elif problem := rendering_problem(kind):
        yield f"request.body: {column!r}: {problem}"


def _keep_problem(kind: DataType) -> str | None:
    """Say why a type cannot be carried: Parquet, and so the snapshot, has no form for it."""
    plain_kind = plain_type(kind)
    unfit = pt.is_union(plain_kind) or pt.is_interval(plain_kind)
    return f"{kind} cannot be carried; cast it in the source" if unfit else None
