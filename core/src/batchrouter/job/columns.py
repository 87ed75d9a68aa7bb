"""The names of the landed table's columns, and the clashes between those that a job asks for."""

from collections.abc import Iterable, Iterator

from batchrouter.job.requests import Request

LANDED = (
    "_status", "_error_code", "_error_message", "_raw_output", "_provider", "_model",
    "_input_tokens", "_output_tokens", "_cost_usd", "_batch_id", "_run_key", "_request_hash",
    "_completed_at",
)  # fmt: skip
"""The columns that landing adds, in their order, after the key, `keep` and the output."""

SNAPSHOT = ("_row", "_line", "_item_id", "_request_hash", "_skip_reason")
"""The columns that the row snapshot adds, before the key and `keep`."""

_RESERVED = {*LANDED, *SNAPSHOT, "_run", "_job"}
_PLAIN_OUTPUT = "output"


def output_names(request: Request) -> tuple[str, ...]:
    """The output's columns: the schema's properties, or `output` for text and vectors."""
    schema = request.output_schema()
    return tuple(schema["properties"]) if schema else (_PLAIN_OUTPUT,)


def clash_problems(key: Iterable[str], keep: Iterable[str], request: Request) -> Iterator[str]:
    """Yield a sentence for each name that two columns of the landed table would share.

    Names are compared without case: DuckDB, Delta and most databases know no other way.
    """
    taken: dict[str, str] = {name.casefold(): "a column that landing adds" for name in _RESERVED}
    groups = (("key", key), ("keep", keep), ("request.output", output_names(request)))
    for field, names in groups:
        for name in names:
            by = taken.get(name.casefold())
            if by is None:
                taken[name.casefold()] = f"named by {field}"
            elif field == "keep" and by == "named by key":
                yield f"keep: {name!r} is a key, which is carried anyway; leave it out"
            elif by == f"named by {field}":
                yield f"{field}: {name!r} stands twice; keep one"
            else:
                yield f"{field}: {name!r} is also {by}; {_advice(field, request)}"


def _advice(field: str, request: Request) -> str:
    if field == "request.output" and request.output_schema() is None:
        return "rename that column in the source, or give the answer a schema"
    if field == "request.output":
        return "rename the property"
    return "rename the column in the source"
