"""From a partition's key to the parameters of the job, which select the rows of the source."""

from collections.abc import Mapping
from string import Formatter
from typing import Any

import dagster as dg

from batchrouter import Job
from batchrouter.errors import JobError

_OF_TIME = ("start", "end")


def checked_params(
    job: Job,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    given: Mapping[str, str] | None,
) -> dict[str, str]:
    """Say which parameter is filled by what of a partition, and find mistakes early.

    Args:
        job: The job.
        partitions_def: The partitions of its assets.
        given: Templates by parameter: ``{key}``, the name of a dimension, and for partitions of
            time ``{start}`` and ``{end}``, each with a format such as ``{start:%Y-%m-%d}``. When
            left out, the dimensions fill the parameters of their names, and a partition without
            dimensions the one parameter that has no value.

    Raises:
        JobError: A template names what there is not, or nothing is given and it is not clear
            which parameter is meant.
    """
    if partitions_def is None:
        if given:
            raise JobError("partition_params: there is no partitions_def that could fill them")
        return {}
    if given is None:
        return _obvious_params(job, partitions_def)
    names = _names_of(partitions_def)
    for param, template in given.items():
        if param not in job.params:
            raise JobError(
                f"partition_params.{param}: job {job.name!r} declares no such parameter; it has "
                f"{', '.join(job.params) or 'none'}"
            )
        for _, name, _, _ in Formatter().parse(template):
            if name is not None and name not in names:
                raise JobError(
                    f"partition_params.{param}: {{{name}}} is unknown; there is "
                    f"{', '.join(f'{{{each}}}' for each in names)}"
                )
    return dict(given)


def params_of(
    partitions_def: dg.PartitionsDefinition[Any] | None,
    templates: Mapping[str, str],
    partition_key: str | None,
) -> dict[str, str]:
    """Fill the templates for one partition.

    Example:
        >>> days = dg.DailyPartitionsDefinition(start_date="2026-11-01")
        >>> params_of(days, {"day": "{key}", "until": "{end:%d.%m.}"}, "2026-11-22")
        {'day': '2026-11-22', 'until': '23.11.'}
    """
    if partitions_def is None or partition_key is None:
        return {}
    values = _values_of(partitions_def, partition_key)
    return {param: template.format_map(values) for param, template in templates.items()}


def _obvious_params(job: Job, partitions_def: dg.PartitionsDefinition[Any]) -> dict[str, str]:
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        names = [each.name for each in partitions_def.partitions_defs]
        missing = [name for name in names if name not in job.params]
        if missing:
            raise JobError(
                f"partition_params: job {job.name!r} declares no parameter {missing[0]!r} for the "
                "dimension of that name; declare it under params, or say by partition_params "
                "which parameter takes it"
            )
        return {name: f"{{{name}}}" for name in names}
    unfilled = [name for name, value in job.params.items() if value is None]
    if len(unfilled) != 1:
        found = ", ".join(unfilled) or "none"
        raise JobError(
            f"partition_params: which parameter of job {job.name!r} takes the partition's key? "
            f"One without a value would be it, and there is {found}. Say it, such as "
            'partition_params={"day": "{key}"}'
        )
    return {unfilled[0]: "{key}"}


def _names_of(partitions_def: dg.PartitionsDefinition[Any]) -> list[str]:
    names = ["key"]
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        names += [each.name for each in partitions_def.partitions_defs]
    if _time_of(partitions_def) is not None:
        names += _OF_TIME
    return names


def _time_of(
    partitions_def: dg.PartitionsDefinition[Any],
) -> tuple[str | None, dg.TimeWindowPartitionsDefinition] | None:
    """The partitions of time, and the dimension that has them."""
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return None, partitions_def
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        for each in partitions_def.partitions_defs:
            if isinstance(each.partitions_def, dg.TimeWindowPartitionsDefinition):
                return each.name, each.partitions_def
    return None


def _values_of(partitions_def: dg.PartitionsDefinition[Any], key: str) -> dict[str, Any]:
    values: dict[str, Any] = {"key": key}
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        values |= partitions_def.get_partition_key_from_str(key).keys_by_dimension
    of_time = _time_of(partitions_def)
    if of_time is not None:
        dimension, windows = of_time
        window = windows.time_window_for_partition_key(values[dimension] if dimension else key)
        values |= {"start": window.start, "end": window.end}
    return values
