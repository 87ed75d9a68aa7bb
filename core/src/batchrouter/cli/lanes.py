"""`lanes`: try what the router buys from, see what is open there, and settle what is held."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrouter.cli.console import out, say_json, table
from batchrouter.cli.data_folder import data_option, database_option, router_database
from batchrouter.cli.options import json_option
from batchrouter.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from batchrouter.server.storage.database import Database

_NEEDED_FOR = "the router's lanes"
_WRONG_CONFIGURATION = 2
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.group()
def lanes() -> None:
    """The lanes of router.toml: what they can do, and what is open at their providers."""


@lanes.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="router.toml; default: the built-in simulated lanes.",
)
@json_option
def check(*, config_path: Path | None, as_json: bool) -> None:
    """Try each lane's key, models, limits and prices; nothing is bought."""
    try:
        from batchrouter.server.config import load_config  # noqa: PLC0415 - loads the router
        from batchrouter.server.lanes.examining import examine_lane  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for=_NEEDED_FOR) from error
    found = [one for lane in load_config(config_path).lanes for one in examine_lane(lane)]
    if as_json:
        say_json([
            {"level": one.level, "lane": one.lane, "subject": one.subject, "told": one.told}
            for one in found
        ])
    else:
        shown = table("", "lane", "subject", "found")
        for one in found:
            style = _STYLES[one.level]
            shown.add_row(f"[{style}]{one.level}[/]", one.lane, one.subject, one.told)
        out().print(shown)
    if any(one.level == "fail" for one in found):
        click.get_current_context().exit(_WRONG_CONFIGURATION)


@lanes.command(name="list")
@data_option
@database_option
@json_option
def list_command(*, data_dir: Path, database: str | None, as_json: bool) -> None:
    """List what is open at providers: prepared, sent, unsettled or held."""
    with router_database(data_dir, _NEEDED_FOR, database) as opened:
        found = _open_submissions(opened)
    if as_json:
        say_json(found)
        return
    shown = table("submission", "lane", "model", "state", "items", "provider batch", "why")
    for row in found:
        shown.add_row(*(str(row[name] or "") for name in _COLUMNS))
    out().print(shown)


_COLUMNS = ("submission", "lane", "model", "state", "items", "provider_batch", "why")


@lanes.command()
@click.argument("submission", metavar="SUBMISSION")
@data_option
@database_option
@click.option("--adopt", metavar="BATCH", help="The provider's batch that it is, by its id.")
@click.option("--not-bought", is_flag=True, help="The provider has no such batch: send it again.")
def reconcile(
    *,
    submission: str,
    data_dir: Path,
    database: str | None,
    adopt: str | None,
    not_bought: bool,
) -> None:
    """Settle a held submission, after a look at the provider's own console.

    The router holds what it can neither find at the provider nor rule out, and buys nothing
    for it. `batchrouter lanes list` shows the held ones.
    """
    if (adopt is None) is not not_bought:
        raise ConfigError("say one of --adopt BATCH and --not-bought")
    with router_database(data_dir, _NEEDED_FOR, database) as opened:
        from batchrouter.server.lanes.book import decide_held  # noqa: PLC0415 - loads SQLAlchemy

        if not decide_held(opened, submission, adopt=adopt):
            raise ConfigError(
                f"no submission {submission!r} is held; "
                f"`batchrouter lanes list --data {data_dir}` shows what is"
            )
    what = "will be sent again" if not_bought else f"is the provider's {adopt}"
    out().print(f"{submission} {what}; the router goes on with it within half a minute.")


def _open_submissions(database: "Database") -> list[dict[str, Any]]:
    from batchrouter.server.lanes.book import open_submissions  # noqa: PLC0415 - loads SQLAlchemy

    return [
        {
            "submission": one.key,
            "lane": one.provider,
            "model": one.model,
            "state": one.state,
            "items": one.item_count,
            "provider_batch": one.provider_batch,
            "why": one.trouble.error_message if one.trouble else None,
        }
        for one in open_submissions(database)
    ]
