"""What is wrong with a job, as sentences: `path: problem; what to do`, all of them at once."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from batchrouter.errors import JobError

type_names = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "Decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "nothing",
    "date": "a date",
    "datetime": "a time",
}
"""What people call the values that a job file can hold."""

_EXPECTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}

_BOUNDS = {
    "too_short": "is empty; give at least {min_length}",
    "string_too_short": "is empty",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Name the nearest option, or list them all when none is near.

    Example:
        >>> did_you_mean("subjet", ["subject", "body"])
        "did you mean 'subject'?"
        >>> did_you_mean("x", ["subject", "body"])
        'there are: body, subject'
    """
    known = sorted(set(options))
    near = difflib.get_close_matches(str(name), known, n=1)
    if not near:
        folded = {option.casefold(): option for option in known}
        near = [folded[str(name).casefold()]] if str(name).casefold() in folded else []
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if known else "there are none"


def name_of_type(value: object) -> str:
    """Say what kind of value this is, in a job writer's words."""
    return type_names.get(type(value).__name__, type(value).__name__)


def path_text(path: Iterable[str | int]) -> str:
    """Write a field's path as people read it: `request.output.tags[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def job_error(problems: Iterable[str], *, origin: str = "the job") -> JobError:
    """Make one error of all problems; a single one stays on one line."""
    told = tuple(problems)
    if len(told) == 1:
        return JobError(f"{origin}: {told[0]}", problems=told)
    listed = "".join(f"\n  - {problem}" for problem in told)
    return JobError(f"{origin} has {len(told)} problems:{listed}", problems=told)


def problems_in(
    error: ValidationError,
    model: type[BaseModel],
    lines: Mapping[tuple[str | int, ...], int] | None = None,
) -> tuple[str, ...]:
    """Turn pydantic's findings into sentences; no value of the job is repeated but short choices.

    Args:
        error: What validation found.
        model: The model that was validated; its fields are the choices for a misspelt name.
        lines: The line of each path in the job's file, where it came from one.
    """
    told: list[str] = []
    for detail in error.errors(include_url=False):
        path, fields = _locate(detail["loc"], model)
        sentences = _sentences(detail, path, fields)
        line = _line_of(path, lines or {})
        told += [f"{sentence} (line {line})" if line else sentence for sentence in sentences]
    return tuple(dict.fromkeys(told))


def _line_of(path: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]) -> int | None:
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def _locate(
    loc: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[tuple[str | int, ...], dict[str, str]]:
    """Drop union tags from a location; also give the fields (with hints) that are known there."""
    path: list[str | int] = []
    choices: dict[str, type[BaseModel]] = {"": model}
    holder = model
    for step in loc:
        if step in choices:  # the tag of a discriminated union: not a part of the file
            choices = {"": choices[str(step)]}
            continue
        path.append(step)
        if "" in choices:
            holder = choices[""]
        field = holder.model_fields.get(str(step)) if "" in choices else None
        choices = _models_by_tag(field.annotation) if field else {}
    hints = {name: field.description or "" for name, field in holder.model_fields.items()}
    return tuple(path), hints


def _models_by_tag(annotation: Any) -> dict[str, type[BaseModel]]:
    options = getattr(annotation, "__args__", None) or (annotation,)
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return {
        str(each.model_fields["kind"].default) if "kind" in each.model_fields else "": each
        for each in models
    }


def _sentences(
    detail: ErrorDetails, path: tuple[str | int, ...], fields: dict[str, str]
) -> list[str]:
    where = path_text(path)
    if detail["type"] == "value_error":
        # Our own validators write a sentence a line; one about something inside starts with its
        # path there.
        lines = str(detail.get("ctx", {}).get("error")).split("\n")
        return [_joined(where, line) for line in lines]
    return [_joined(where, _sentence(detail, path, fields))]


def _joined(where: str, line: str) -> str:
    if line.startswith((".", "[")):
        return f"{where}{line}".removeprefix(".")
    return f"{where}: {line}" if where else line


def _sentence(detail: ErrorDetails, path: tuple[str | int, ...], fields: dict[str, str]) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        hint = fields.get(str(path[-1]), "")
        text = f"is missing; give {hint}" if hint else "is missing"
    elif kind == "extra_forbidden":
        text = f"there is no such field; {did_you_mean(path[-1], fields)}"
    elif kind in {"union_tag_not_found", "union_tag_invalid"}:
        text = ".kind: must be one of chat, embedding, workflow, raw"
    elif kind == "literal_error":
        text = f"must be {context.get('expected', '')}, not {_short(given)}"
    elif kind in _EXPECTED:
        text = f"{_EXPECTED[kind]}, not {name_of_type(given)}{_quote_hint(kind, given)}"
    elif kind in _BOUNDS:
        text = _BOUNDS[kind].format(**context)
    else:
        text = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
    return text


def _quote_hint(kind: str, given: object) -> str:
    if kind == "string_type" and not isinstance(given, list | dict | tuple) and given is not None:
        return "; put it in quotes"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    most = 40
    return text if len(text) <= most else name_of_type(value)
