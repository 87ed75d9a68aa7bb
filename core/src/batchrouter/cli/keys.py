"""`keys`: who may talk to the embedded router."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrouter.cli.console import out, say_json, table
from batchrouter.cli.data_folder import (
    data_option,
    database_option,
    database_path,
    router_database,
)
from batchrouter.cli.options import json_option
from batchrouter.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batchrouter.server.storage.keys import KeyLimits

_MAX_BUDGET_USD = Decimal(1_000_000_000)
_SCOPES = ("quote", "submit", "read", "cancel")

_NEEDED_FOR = "the router's keys"


@click.group()
def keys() -> None:
    """The API keys of an embedded router; a running one sees every change at once."""


@keys.command()
@data_option
@database_option
@click.option(
    "--scopes",
    default=",".join(_SCOPES),
    show_default=True,
    help="What the key may do, separated by commas.",
)
@click.option("--label", default="", help="For people: whose key it is.")
@click.option(
    "--workspace",
    default="default",
    show_default=True,
    help="Whose credits it spends; a new name makes a workspace with the initial credits.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(0),
    metavar="N",
    help="Its own limit, in place of router.toml's; 0 is none.",
)
@click.option(
    "--budget", metavar="USD", help="The most that its batches may come to, all together."
)
@json_option
def create(
    *,
    data_dir: Path,
    database: str | None,
    scopes: str,
    label: str,
    workspace: str,
    requests_per_minute: int | None,
    budget: str | None,
    as_json: bool,
) -> None:
    """Mint a key and print it: it is shown this once, and only its hash is kept."""
    if database is None:
        database_path(data_dir, _NEEDED_FOR)
    from batchrouter.server.serve import mint_key  # noqa: PLC0415 - loads the router

    names = [name.strip() for name in scopes.split(",") if name.strip()]
    limits = _limits(requests_per_minute, budget)
    key = mint_key(data_dir, names, label, workspace=workspace, database=database, limits=limits)
    if as_json:
        say_json({"key": key, "scopes": names, "label": label})
    else:
        click.echo(key)


@keys.command(name="list")
@data_option
@database_option
@json_option
def list_command(*, data_dir: Path, database: str | None, as_json: bool) -> None:
    """List the keys by id; the keys themselves are known to nobody but their owners."""
    with _connection(data_dir, database) as conn:
        found = _rows(conn)
    if as_json:
        say_json(found)
        return
    shown = table("id", "label", "scopes", "created", "revoked")
    for row in found:
        shown.add_row(row["id"], row["label"], row["scopes"], row["created_at"], row["revoked_at"])
    out().print(shown)


@keys.command()
@click.argument("key_id", metavar="ID")
@data_option
@database_option
def revoke(*, key_id: str, data_dir: Path, database: str | None) -> None:
    """Revoke a key by the id that `keys list` shows; requests with it are refused from now on."""
    from sqlalchemy import update  # noqa: PLC0415 - `--help` does without

    with _connection(data_dir, database) as conn:
        from batchrouter.server.storage.clock import now_us  # noqa: PLC0415 - loads SQLAlchemy
        from batchrouter.server.storage.tables import api_keys  # noqa: PLC0415 - as above

        done = conn.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=now_us())
        )
    if not done.rowcount:
        raise ConfigError(
            f"there is no key {key_id!r} that could be revoked; "
            f"`batchrouter keys list --data {data_dir}` has the ids"
        )
    out().print(f"{key_id} is revoked.")


def _limits(requests_per_minute: int | None, budget: str | None) -> "KeyLimits | None":
    from batchrouter.server.storage.keys import KeyLimits  # noqa: PLC0415 - loads SQLAlchemy

    if requests_per_minute is None and budget is None:
        return None
    return KeyLimits(requests_per_minute, None if budget is None else _budget_micro(budget))


def _budget_micro(budget: str) -> int:
    try:
        amount = Decimal(budget)
    except ArithmeticError:
        amount = Decimal("NaN")
    if not (amount.is_finite() and 0 < amount <= _MAX_BUDGET_USD):
        raise ConfigError(
            f"--budget {budget}: must be USD, above 0 and at most {_MAX_BUDGET_USD:,}, as in 25.00"
        )
    return int(amount.scaleb(6))


@contextmanager
def _connection(data_dir: Path, database: str | None) -> "Generator[Connection]":
    with router_database(data_dir, _NEEDED_FOR, database) as opened, opened.writing() as conn:
        yield conn


def _rows(conn: "Connection") -> list[dict[str, Any]]:
    from sqlalchemy import select  # noqa: PLC0415 - `--help` does without

    from batchrouter.server.storage.tables import api_keys  # noqa: PLC0415 - as above

    wanted = select(
        api_keys.c.id,
        api_keys.c.label,
        api_keys.c.scopes,
        api_keys.c.created_at,
        api_keys.c.revoked_at,
    ).order_by(api_keys.c.created_at)
    return [
        {
            "id": row.id,
            "label": row.label,
            "scopes": row.scopes,
            "created_at": _written(row.created_at),
            "revoked_at": _written(row.revoked_at),
        }
        for row in conn.execute(wanted)
    ]


def _written(at_us: int | None) -> str | None:
    return (
        None if at_us is None else f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%d %H:%M:%SZ}"
    )
