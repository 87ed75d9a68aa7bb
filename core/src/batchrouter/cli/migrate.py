"""`migrate`: the tables of a router's shared database."""

import click

from batchrouter.cli.console import out
from batchrouter.cli.data_folder import database_option
from batchrouter.errors import ConfigError, MissingExtraError


@click.command()
@database_option
def migrate(*, database: str | None) -> None:
    """Make or update the tables of a shared database, before the processes of a new version start.

    Routers may run on it meanwhile: a schema only grows. SQLite needs none of this.
    """
    if database is None:
        raise ConfigError("--database postgresql://… is needed; SQLite's tables make themselves")
    try:
        from batchrouter.server.serve import migrate as migrate_tables  # noqa: PLC0415 - loads all
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for="the router's database") from error
    made = migrate_tables(database)
    out().print(f"made: {', '.join(made)}" if made else "Nothing was missing.")
