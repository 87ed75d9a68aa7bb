"""The folder of an embedded router, for commands that look into it from beside the router."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchrouter.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from batchrouter.server.storage.database import Database

data_option = click.option(
    "--data",
    "data_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder of a router that was started there; it may be running.",
)

database_option = click.option(
    "--database",
    envvar="BATCHROUTER_DATABASE",
    metavar="URL",
    help="postgresql://…, for several processes on the same state. Better set as"
    " BATCHROUTER_DATABASE: other users of a machine see its commands.",
)


def database_path(data_dir: Path, needed_for: str) -> Path:
    """Name the database of a router that was started in a folder.

    Args:
        data_dir: The folder.
        needed_for: What the command wants of it, for the error.

    Raises:
        ConfigError: None was.
        MissingExtraError: The server extra is not installed.
    """
    try:
        from batchrouter.server.storage.folder import DataFolder  # noqa: PLC0415 - SQLAlchemy
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for=needed_for) from error
    path = DataFolder.open(data_dir).database
    if not path.is_file():
        # A key in a fresh folder would keep the router from minting its own first one.
        raise ConfigError(
            f"no router was started in {data_dir} yet: `batchrouter serve --data {data_dir}`"
        )
    return path


@contextmanager
def router_database(
    data_dir: Path, needed_for: str, database: str | None = None
) -> "Generator[Database]":
    """Open the database of a router: of the folder in which one was started, or a shared one.

    Raises:
        ConfigError: None was, or a newer router's is there.
        MissingExtraError: The server extra is not installed.
    """
    if database is None:
        database_path(data_dir, needed_for)
    try:
        from batchrouter.server.storage.places import Places  # noqa: PLC0415 - loads SQLAlchemy
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for=needed_for) from error
    opened = Places.find(data_dir, database=database).open_database()
    try:
        yield opened
    finally:
        opened.close()
