"""What one row asks for: a chat, an embedding, a workflow's fields, or a body of one's own."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from batchrouter.job.part import JobPart
from batchrouter.job.problems import did_you_mean
from batchrouter.job.schemas import closed_schema, plain_json
from batchrouter.job.templates import Template

Operation = Literal["responses", "embeddings"]

_OUTPUT_CAP = "max_output_tokens"
_ELSEWHERE = {
    "messages": "the messages are made from `system` and `user`",
    "input": "the input is made from the templates",
    "model": "name it in route.models",
    "models": "name them in route.models",
    "response_format": "say it in request.output",
    "text": "say its format in request.output",
    "max_tokens": f"write {_OUTPUT_CAP}, which the price is locked with",
    "max_completion_tokens": f"write {_OUTPUT_CAP}, which the price is locked with",
    "stream": "a batch does not stream",
    "n": "a row gets one answer",
    "background": "a batch always is",
}
_KNOWN = (_OUTPUT_CAP, "temperature", "top_p", "seed", "stop", "reasoning", "reasoning_effort")


def _checked_parameters(given: dict[str, Any]) -> dict[str, Any]:
    problems = [
        f".{name}: has no place here: {why}" for name, why in _ELSEWHERE.items() if name in given
    ]
    for name in given:
        hint = did_you_mean(name, _KNOWN)
        if (
            name not in (*_KNOWN, *_ELSEWHERE)
            and hint.startswith("did")
            and hint.endswith(f"{_OUTPUT_CAP!r}?")
        ):
            problems.append(f".{name}: there is no such parameter; {hint}")
    cap = given.get(_OUTPUT_CAP)
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        problems.append(f".{_OUTPUT_CAP}: must be a whole number from 1 on")
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    # Sorted, so that their order in the file decides neither the request's bytes nor its hash.
    return {name: plain_json(given[name]) for name in sorted(given)}


Parameters = Annotated[dict[str, Any], AfterValidator(_checked_parameters)]


class Request(JobPart):
    """What all kinds of request share."""

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield each template with its path inside the request."""
        yield from ()

    def output_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer: a closed object, or None for plain text."""
        return None

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that one answer may have, where the job caps it for all rows."""
        return None


class Answered(Request):
    """A request whose answer may be an object of a schema."""

    output: Any = Field(
        default=None, description="JSON Schema properties, or package.module:PydanticModel"
    )

    @field_validator("output")
    @classmethod
    def _output_is_a_schema(cls, output: Any) -> Any:
        if output is not None:
            closed_schema(output)
        return output

    @cached_property
    def _closed(self) -> dict[str, Any] | None:
        return None if self.output is None else closed_schema(self.output)

    def output_schema(self) -> dict[str, Any] | None:
        """The closed JSON Schema of the answer, None when it is free text or a vector."""
        return self._closed


class Chat(Answered):
    """A system prompt and a user prompt, answered with text or with an object of a schema.

    Example:
        >>> chat = Chat(user="{body}", output={"urgent": {"type": "boolean"}})
        >>> list(chat.output_schema()["properties"])
        ['urgent']
    """

    kind: Literal["chat"] = "chat"
    system: Template | None = Field(None, description="the system prompt")
    user: Template = Field(description="the user prompt, with {column} placeholders")
    parameters: Parameters = Field(
        default_factory=dict, description="generation parameters, such as max_output_tokens"
    )

    if TYPE_CHECKING:  # a template is given as text

        def __init__(
            self,
            *,
            user: str,
            system: str | None = ...,
            output: Any = ...,
            parameters: Mapping[str, Any] = ...,
            kind: Literal["chat"] = ...,
        ) -> None: ...

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield the system prompt, if there is one, and the user prompt."""
        if self.system is not None:
            yield "system", self.system
        yield "user", self.user

    @property
    def max_output_tokens(self) -> int | None:
        """The cap of `parameters`, None when it has none."""
        cap: int | None = self.parameters.get(_OUTPUT_CAP)
        return cap


class Embedding(Request):
    """One text a row, answered with a vector."""

    kind: Literal["embedding"] = "embedding"
    input: Template = Field(description="the text, with {column} placeholders")
    parameters: Parameters = Field(
        default_factory=dict, description="parameters of the model, such as dimensions"
    )

    if TYPE_CHECKING:  # a template is given as text

        def __init__(
            self,
            *,
            input: str,  # noqa: A002 - the field's name
            parameters: Mapping[str, Any] = ...,
            kind: Literal["embedding"] = ...,
        ) -> None: ...

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield the text's template."""
        yield "input", self.input


class Workflow(Answered):
    """The fields that a curated workflow's contract names (`route.workflow`).

    A field is JSON, and every text in it is a template.

    Example:
        >>> workflow = Workflow(input={"body": "{text}", "labels": ["card", "fees"]})
        >>> [path for path, _ in workflow.templates()]
        ['input.body', 'input.labels[0]', 'input.labels[1]']
    """

    kind: Literal["workflow"] = "workflow"
    input: dict[str, Any] = Field(min_length=1, description="each field of the workflow")

    @field_validator("input")
    @classmethod
    def _input_is_json(cls, given: dict[str, Any]) -> dict[str, Any]:
        return _checked_json(given)

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield each text of the fields."""
        for path, text in _texts(self.input, "input"):
            yield path, Template(text)


class Raw(Answered):
    """The wire's `input` itself: JSON out of a column, or a mapping with templates as its texts.

    Example:
        >>> raw = Raw(body={"messages": [{"role": "user", "content": "{body}"}], "top_p": 1})
        >>> [path for path, _ in raw.templates()]
        ['body.messages[0].role', 'body.messages[0].content']
    """

    kind: Literal["raw"] = "raw"
    body: str | dict[str, Any] = Field(
        description="the column that holds each row's input as JSON, or a mapping with templates"
    )
    operation: Operation = "responses"

    @field_validator("body")
    @classmethod
    def _body_is_json(cls, body: str | dict[str, Any]) -> str | dict[str, Any]:
        if not body:
            raise ValueError("is empty; name the column that holds the input, or give a mapping")
        if isinstance(body, str):
            return body
        if "model" in body:
            raise ValueError(".model: has no place here: name it in route.models")
        return _checked_json(body)

    @model_validator(mode="after")
    def _output_needs_text(self) -> "Raw":
        if self.output is not None and self.operation == "embeddings":
            raise ValueError(".output: an embedding answers a vector; leave output out")
        return self

    @property
    def column(self) -> str | None:
        """The column with each row's JSON, None when the body is a mapping."""
        return self.body if isinstance(self.body, str) else None

    def templates(self) -> Iterator[tuple[str, Template]]:
        """Yield every text of a mapping; a body out of a column has no template."""
        if isinstance(self.body, dict):
            for path, text in _texts(self.body, "body"):
                yield path, Template(text)

    @property
    def max_output_tokens(self) -> int | None:
        """The cap inside a mapping; bodies out of a column are looked through at the build."""
        cap = self.body.get(_OUTPUT_CAP) if isinstance(self.body, dict) else None
        return cap if isinstance(cap, int) else None


def _checked_json(given: dict[str, Any]) -> dict[str, Any]:
    """Read a mapping as JSON whose texts are templates."""
    plain: dict[str, Any] = plain_json(given)
    for path, text in _texts(plain, ""):
        try:
            Template.checked(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return plain


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")


AnyRequest = Annotated[Chat | Embedding | Workflow | Raw, Field(discriminator="kind")]
