"""`serve`: the embedded router in the foreground."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchrouter.cli.console import out
from batchrouter.cli.data_folder import database_option
from batchrouter.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from batchrouter.server.app import Role


@click.command()
@click.option(
    "--data",
    "data_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Its folder, made if absent: database, manifests, artifacts, the first API key.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="router.toml: lanes, prices, workflows, limits. Without it, simulated lanes.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="0 takes any free port; the URL is printed, and written to DIR/address.",
)
@click.option(
    "--allow-public-host", is_flag=True, help="Listen on an address that other machines can reach."
)
@database_option
@click.option(
    "--objects",
    envvar="BATCHROUTER_OBJECTS",
    metavar="URL",
    help="s3://bucket/prefix, for manifests and artifacts; credentials by AWS_… as usual.",
)
@click.option(
    "--role",
    type=click.Choice(["both", "api", "worker"]),
    default="both",
    show_default=True,
    help="With --database: answer callers, do the work, or both; any number of processes of each.",
)
@click.option("--check", "only_check", is_flag=True, help="Check the configuration and stop.")
def serve(
    *,
    data_dir: Path | None,
    config_path: Path | None,
    host: str,
    port: int,
    allow_public_host: bool,
    database: str | None,
    objects: str | None,
    role: "Role",
    only_check: bool,
) -> None:
    """Run the embedded router until it is interrupted.

    Its built-in lanes are simulated: they call nobody, and say so in every answer.
    """
    try:
        from batchrouter.server.config import load_config  # noqa: PLC0415 - loads pydantic
        from batchrouter.server.serve import serve as serve_router  # noqa: PLC0415 - loads all
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for="the embedded router") from error
    if only_check:
        config = load_config(config_path)
        lanes = ", ".join(lane.provider for lane in config.lanes)
        workflows = ", ".join(workflow.reference for workflow in config.workflows) or "none"
        out().print(f"[green]ok[/]  lanes: {lanes}; workflows: {workflows}")
        return
    if data_dir is None:
        raise ConfigError("--data DIR is needed: where the router keeps its state")
    serve_router(
        data_dir,
        config_path,
        host,
        port,
        allow_public_host=allow_public_host,
        database=database,
        objects=objects,
        role=role,
    )
