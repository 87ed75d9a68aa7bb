"""Parameters of a job: typed by their defaults, filled into `source` and `sink`, nowhere else."""

import re
from collections.abc import Mapping
from datetime import date, datetime

from batchrouter.job.problems import did_you_mean, name_of_type

ParamValue = str | int | date | datetime | None

_NAME = re.compile(r"^[^\W\d]\w*$")
_USE = re.compile(r"\$\{params\.([^}]*)\}")


def checked_params(given: Mapping[str, object]) -> dict[str, ParamValue]:
    """Check names and types.

    Raises:
        ValueError: One problem a line.
    """
    problems: list[str] = []
    for name, value in given.items():
        if not _NAME.match(name):
            problems.append(f"{name!r} is no name: use letters, digits and underscores")
        elif isinstance(value, bool) or not isinstance(value, str | int | date | None):
            told = name_of_type(value)
            problems.append(f"{name} is {told}; parameters are text, whole numbers or dates")
    if problems:
        raise ValueError("\n".join(problems))
    return {
        name: value for name, value in given.items() if isinstance(value, str | int | date | None)
    }


def merged_params(
    declared: Mapping[str, ParamValue], given: Mapping[str, object]
) -> dict[str, ParamValue]:
    """Put given values over the declared ones, each as the type of its default.

    Raises:
        ValueError: One problem a line: a name that the job does not declare, or a value that is
            not of its default's type.

    Example:
        >>> merged_params({"shard": 0, "day": None}, {"shard": "7"})
        {'shard': 7, 'day': None}
    """
    merged, problems = dict(declared), list[str]()
    for name, value in checked_params(given).items():
        if name not in declared:
            problems.append(f"the job has no parameter {name!r}; {did_you_mean(name, declared)}")
            continue
        try:
            merged[name] = _like(value, declared[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return merged


def _like(value: ParamValue, default: ParamValue) -> ParamValue:
    if default is None or value is None or isinstance(value, type(default)):
        return value
    text = str(value)
    if isinstance(default, str):
        return value.isoformat() if isinstance(value, date) else text
    kind = type(default)
    try:
        return int(text) if kind is int else kind.fromisoformat(text)  # type: ignore[union-attr]
    except ValueError:
        raise ValueError(f"{text!r} is not {name_of_type(default)}, as its default is") from None


def filled(text: str, params: Mapping[str, ParamValue]) -> str:
    """Replace each `${params.x}`; a date is written as `2026-11-22`.

    Raises:
        ValueError: One problem a line: a parameter without a value, or without a declaration.
    """
    problems = [*use_problems(text, params)]
    problems += [
        f"the parameter {name!r} has no value; give it with -p {name}=… or with_params"
        for name in dict.fromkeys(_USE.findall(text))
        if name in params and params[name] is None
    ]
    if problems:
        raise ValueError("\n".join(problems))
    return _USE.sub(lambda use: _text(params[use.group(1)]), text)


def use_problems(text: str, params: Mapping[str, ParamValue]) -> list[str]:
    """Name the parameters that a text uses and the job does not declare."""
    return [
        f"uses the parameter {name!r}, which params does not declare; {did_you_mean(name, params)}"
        for name in dict.fromkeys(_USE.findall(text))
        if name not in params
    ]


def _text(value: ParamValue) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
