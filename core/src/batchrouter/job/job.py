"""The job: one table in, one request a row, one locked price, one table out."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_serializer, model_validator

from batchrouter.job.columns import clash_problems
from batchrouter.job.credentials import credential_problems
from batchrouter.job.engine import checked_engine, engine_problems
from batchrouter.job.fingerprint import fingerprint_of
from batchrouter.job.params import ParamValue, checked_params, filled, merged_params, use_problems
from batchrouter.job.part import JobPart
from batchrouter.job.problems import job_error, problems_in
from batchrouter.job.requests import AnyRequest, Chat, Embedding, Raw, Workflow
from batchrouter.job.retain import Retain
from batchrouter.job.route import Names, Route
from batchrouter.job.sink import Mode, checked_sink, connection_of, mode_problems
from batchrouter.job.source import Query, checked_source
from batchrouter.job.templates import Template
from batchrouter.money import parse_usd

_T = TypeVar("_T")

MOST_ROUNDS = 10
"""What failed so often fails for a reason that another round does not mend."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


def _checked_name(name: Any) -> Any:
    if isinstance(name, str) and not _NAME.match(name):
        raise ValueError(
            "must be up to 100 letters, digits, dots, dashes and underscores, and start with"
            " a letter or a digit: it names the run's folder"
        )
    return name


def _checked_budget(budget: Any) -> Any:
    advice = "write the most that a run may cost in USD, such as 25.00, or `none`"
    if budget is None:
        raise ValueError(f"is empty; {advice}")
    if budget == "none":
        return None
    if isinstance(budget, float):  # its repr is what was written: 25.1, not 25.10000000000000142
        budget = repr(budget)
    try:
        return parse_usd(budget)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None


class Parts(JobPart):
    """Where to cut the manifest before the router's own limits do, and how to keep it."""

    max_items: int | None = Field(default=None, ge=1, le=10_000_000, description="requests a part")
    max_bytes: int | None = Field(default=None, ge=1, le=5 * 2**30, description="bytes a part")
    compression: Literal["zstd"] | None = Field(
        default=None, description="how the parts are packed in the run's folder"
    )


class Job(JobPart):
    """What to run, checked as a whole when it is made; the source is not touched.

    Relative paths in `source` and `sink` are relative to the working folder.

    Raises:
        JobError: With every problem as `path: problem; what to do`.

    Example:
        >>> job = Job(name="tickets", source="t.parquet", key="id", request=Chat(user="{body}"),
        ...           route=Route(models=["gpt-4o-mini"]), budget="25.00", sink="labelled")
        >>> job.budget, job.key_columns, job.operation
        (Decimal('25.00'), ('id',), 'responses')
    """

    name: Annotated[str, BeforeValidator(_checked_name)] = Field(description="the job's name")
    params: Annotated[dict[str, ParamValue], BeforeValidator(
        lambda given: checked_params(given) if isinstance(given, dict) else given
    )] = Field(default_factory=dict, description="parameters and their defaults")  # fmt: skip
    source: Annotated[Any, BeforeValidator(checked_source)] = Field(
        description="the path, glob or URL of the table, or {sql, connection}"
    )
    key: Names = Field(min_length=1, description="the column or columns that identify a row")
    request: AnyRequest = Field(description="what each row asks for, with its kind")
    route: Route = Field(description="the acceptable models or a workflow")
    budget: Annotated[Decimal | None, BeforeValidator(_checked_budget)] = Field(
        description="the most that a run may cost in USD, such as 25.00, or `none`"
    )
    sink: Annotated[str, BeforeValidator(checked_sink)] = Field(
        description="the path or URL of a Parquet directory, or another kind of table"
    )
    mode: Mode = "replace_run"
    evolve: bool = Field(default=False, description="whether the table may get new columns")
    keep: Names = Field((), description="source columns to carry into the table")
    on_null: Literal["error", "empty", "skip"] = "error"
    parts: Parts | None = Field(None, description="where to cut the manifest")
    dedupe: bool = Field(default=False, description="whether equal requests are sent once")
    incremental: bool = Field(default=False, description="whether to buy only what is new")
    retry_failed: int = Field(
        0, ge=0, le=MOST_ROUNDS, description="rounds that send failed and missing items again"
    )
    retry_invalid: int = Field(
        0, ge=0, le=MOST_ROUNDS, description="rounds that buy answers that did not fit again"
    )
    engine: Annotated[str | None, BeforeValidator(checked_engine)] = Field(
        None, description="where the table is built and landed: on one machine, or on Spark"
    )
    retain: Retain | None = Field(None, description="how long the run folder keeps what")

    if TYPE_CHECKING:  # one key may be given as text, a budget as text or a number

        def __init__(
            self,
            *,
            name: str,
            source: Any,
            key: str | Sequence[str],
            request: Chat | Embedding | Workflow | Raw | Mapping[str, Any],
            route: Route | Mapping[str, Any],
            budget: Decimal | str | float,
            sink: str | os.PathLike[str],
            params: Mapping[str, ParamValue] = ...,
            mode: Mode = ...,
            evolve: bool = ...,
            keep: str | Sequence[str] = ...,
            on_null: Literal["error", "empty", "skip"] = ...,
            parts: Parts | Mapping[str, int | str] | None = ...,
            dedupe: bool = ...,
            incremental: bool = ...,
            retry_failed: int = ...,
            retry_invalid: int = ...,
            engine: str | None = ...,
            retain: Retain | Mapping[str, str] | None = ...,
        ) -> None: ...

    @field_serializer("budget")
    def _write_budget(self, budget: Decimal | None) -> str:
        return "none" if budget is None else str(budget)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        problems = [*self._route_problems(), *clash_problems(self.key, self.keep, self.request)]
        problems += credential_problems(self.params, "params", is_location=True)
        problems += credential_problems(self.sink, "sink", is_location=True)
        problems += [f"sink: {told}" for told in use_problems(self.sink, self.params)]
        problems += mode_problems(self.sink, self.mode)
        if self.incremental and self.mode != "merge":
            problems.append(
                f"incremental: needs `mode: merge`, not {self.mode}: what is unchanged stays in the"
                " table from the runs before"
            )
        problems += self._source_problems()
        problems += engine_problems(self)
        written = self.request.model_dump(exclude={"output"})
        problems += credential_problems(written, "request", is_location=False)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _source_problems(self) -> Iterator[str]:
        source = self.source
        if isinstance(source, str):
            yield from credential_problems(source, "source", is_location=True)
            yield from (f"source: {told}" for told in use_problems(source, self.params))
        elif isinstance(source, Query):
            yield from credential_problems(source.sql, "source.sql", is_location=False)
            yield from (f"source.sql: {told}" for told in use_problems(source.sql, self.params))

    def _route_problems(self) -> Iterator[str]:
        kind, workflow = self.request.kind, self.route.workflow
        if kind == "workflow" and not workflow:
            yield "route: a workflow request needs route.workflow, such as classify@v3"
        if kind in {"chat", "embedding"} and workflow:
            yield f"route: a {kind} request needs route.models; a workflow takes kind: workflow"
        if isinstance(self.request, Raw) and self.request.column and self.on_null == "empty":
            yield "on_null: an empty body is no request; use error or skip"

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], params: Mapping[str, object] | None = None
    ) -> Self:
        """Read a job from a `.yaml`, `.toml` or `.json` file.

        Args:
            path: The file.
            params: Values for the parameters that it declares.

        Raises:
            JobError: The file cannot be read or the job is wrong; every problem has its line.
        """
        from batchrouter.job.documents import read_document  # noqa: PLC0415 - brings PyYAML

        document = read_document(Path(path))
        try:
            job = cls.__pydantic_validator__.validate_python(document.data)
        except ValidationError as error:
            problems = problems_in(error, cls, document.lines)
            raise job_error(problems, origin=str(path)) from None
        return job.with_params(params) if params else job

    if not TYPE_CHECKING:  # the same signature, our error

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Self:
            """Check a mapping, or a job, as pydantic's method does; raises `JobError`."""
            try:
                return super().model_validate(obj, **options)
            except ValidationError as error:
                raise job_error(problems_in(error, cls)) from None

    def with_params(self, params: Mapping[str, object]) -> Self:
        """Return a job with these values for its parameters, each as the type of its default.

        Raises:
            JobError: A parameter is not declared, or its value does not fit.
        """
        try:
            merged = merged_params(self.params, params)
        except ValueError as error:
            raise job_error(f"params: {told}" for told in str(error).split("\n")) from None
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields["budget"] = "none" if self.budget is None else self.budget
        return type(self).model_validate({**fields, "params": merged})

    @property
    def resolved_source(self) -> Any:
        """The source with its parameters filled in; an object in memory as it is.

        Raises:
            JobError: A parameter that it uses has no value.
        """
        source = self.source
        if isinstance(source, Query):
            return self._told("source.sql", source.with_values)
        return self._filled("source", source) if isinstance(source, str) else source

    @property
    def resolved_sink(self) -> str:
        """The sink with its parameters filled in.

        Raises:
            JobError: A parameter that it uses has no value.
        """
        return self._filled("sink", self.sink)

    @property
    def connections(self) -> tuple[str, ...]:
        """The names of the connections that its source and its table need, each once.

        Raises:
            JobError: A parameter that the sink uses has no value.
        """
        of_source = self.source.connection if isinstance(self.source, Query) else None
        needed = (of_source, connection_of(self.resolved_sink))
        return tuple(dict.fromkeys(name for name in needed if name))

    def _filled(self, field: str, text: str) -> str:
        return self._told(field, lambda params: filled(text, params))

    def _told(self, field: str, fill: Callable[[Mapping[str, ParamValue]], _T]) -> _T:
        try:
            return fill(self.params)
        except ValueError as error:
            raise job_error(f"{field}: {told}" for told in str(error).split("\n")) from None

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that identify a row, in the job's order."""
        return self.key

    @property
    def operation(self) -> Literal["responses", "embeddings"] | None:
        """What is quoted: `responses` or `embeddings`; None for a workflow."""
        if self.route.workflow:
            return None
        if isinstance(self.request, Raw):
            return self.request.operation
        return "embeddings" if isinstance(self.request, Embedding) else "responses"

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield each template with its path in the job, such as `request.user`."""
        for path, template in self.request.templates():
            yield f"request.{path}", template

    def fingerprint(self) -> dict[str, str]:
        """Hash what decides the purchase, part by part: source, key, request and route.

        Returns:
            The parts' names and `1:<sha256 hex>` each, where 1 is the version of the hash.
            Defaults are left out, so that a new field changes no old job's fingerprint. A source
            in memory is the text `in-memory`.

        Raises:
            JobError: A parameter that the source uses has no value.
        """
        return fingerprint_of(self)
