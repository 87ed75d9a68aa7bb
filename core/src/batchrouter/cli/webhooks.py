"""`webhooks`: a receiver that writes deliveries into an inbox, and the secret that signs them."""

import socket
from typing import TYPE_CHECKING

import click

from batchrouter.cli.console import err, out
from batchrouter.cli.options import load_settings
from batchrouter.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings


@click.group()
def webhooks() -> None:
    """Receive what the router delivers, so that a wait ends at once and asks rarely."""


@webhooks.command()
def secret() -> None:
    """Mint a signing secret: give it to the receiver and to the runs, and keep it."""
    from batchrouter.webhooks.signing import mint_secret  # noqa: PLC0415 - `--help` does without

    click.echo(mint_secret())


@webhooks.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8766, show_default=True)
@click.option(
    "--inbox",
    "inbox_url",
    metavar="URL",
    help="Where events are kept: SQLAlchemy URL or fsspec folder.  [env: BATCHROUTER_INBOX_URL]",
)
def serve(*, host: str, port: int, inbox_url: str | None) -> None:
    """Listen for deliveries, check their signatures, and write them into the inbox.

    The secret comes from BATCHROUTER_WEBHOOK_SECRET. Runs read the same inbox, and name this
    receiver's public URL in BATCHROUTER_WEBHOOK_URL.
    """
    try:
        import uvicorn  # noqa: PLC0415 - `--help` does without
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("server", needed_for="receiving webhooks") from error
    from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy
    from batchrouter.webhooks.receiver import receiver  # noqa: PLC0415 - as above

    settings = load_settings(inbox_url=inbox_url)
    url, signing_secret = _needed(settings)
    app = receiver(open_inbox(url, **settings.storage_options), signing_secret)
    listening = _listen(host, port)
    err().print(f"Receiving on http://{host}:{listening.getsockname()[1]} into the inbox.")
    if settings.webhook_url is None:
        err().print("[dim]Runs need BATCHROUTER_WEBHOOK_URL: how the router reaches this port.[/]")
    config = uvicorn.Config(app, access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])
    out().print("Stopped.")


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is told, so that port 0 is told as the port that it became."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; name another --port"
        ) from error


def _needed(settings: "Settings") -> tuple[str, str]:
    if settings.inbox_url is None:
        raise ConfigError(
            "no inbox: give --inbox URL or BATCHROUTER_INBOX_URL, such as sqlite:///inbox.db"
        )
    if settings.webhook_secret is None:
        raise ConfigError(
            "no secret: set BATCHROUTER_WEBHOOK_SECRET; `batchrouter webhooks secret` mints one"
        )
    return settings.inbox_url, settings.webhook_secret.get_secret_value()
