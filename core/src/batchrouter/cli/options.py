"""Options that several commands share, and what they are turned into."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchrouter.errors import ConfigError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings
    from batchrouter.job import Job

_Command = TypeVar("_Command", bound=Callable[..., Any])

JOB_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _name_and_value(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    parted = [text.partition("=") for text in given]
    for text, (name, separator, _) in zip(given, parted, strict=True):
        if not separator or not name:
            raise click.BadParameter(
                f"{text!r} is not NAME=VALUE, such as -p day=2026-11-22", ctx, param
            )
    return tuple((name, value) for name, _, value in parted)


job_argument = click.argument("job_file", metavar="JOB", type=JOB_FILE)

params_option = click.option(
    "-p",
    "--param",
    "params",
    metavar="NAME=VALUE",
    callback=_name_and_value,
    multiple=True,
    help="A value for one of the job's parameters; may be given again and again.",
)

run_key_option = click.option(
    "--run-key",
    required=True,
    metavar="KEY",
    help="The name of this execution, such as its day: the same key goes on with the same run.",
)

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N rows, as a trial: a run of its own, landed in its run folder.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document; progress stays on stderr."
)

runs_url_option = click.option(
    "--runs-url",
    metavar="URL",
    help="The folder of all runs, any fsspec URL.  [env: BATCHROUTER_RUNS_URL; default: runs]",
)

base_url_option = click.option(
    "--base-url", metavar="URL", help="Where the API is.  [env: BATCHROUTER_BASE_URL]"
)


def account_options(command: _Command) -> _Command:
    """Add what says which router and which runs folder."""
    return base_url_option(runs_url_option(command))


def load_job(path: Path, params: tuple[tuple[str, str], ...]) -> "Job":
    """Read a job file with its parameters.

    Raises:
        JobError: The file cannot be read, or the job is wrong.
    """
    from batchrouter.job import Job  # noqa: PLC0415 - loads pydantic

    return Job.from_file(path, dict(params))


def load_settings(**overrides: Any) -> "Settings":
    """Read the settings of the environment; what was given on the command line wins.

    Raises:
        ConfigError: A setting is wrong.
    """
    from batchrouter.api.settings import Settings  # noqa: PLC0415 - loads pydantic

    return Settings.from_env(**overrides)


def need_key(settings: "Settings") -> None:
    """Ask for the API key before a manifest is built in vain.

    Raises:
        ConfigError: There is none.
    """
    if settings.api_key is None:
        raise ConfigError(
            "no API key: set BATCHROUTER_API_KEY. For an embedded router: "
            "export BATCHROUTER_API_KEY=$(cat DIR/api_key)"
        )
