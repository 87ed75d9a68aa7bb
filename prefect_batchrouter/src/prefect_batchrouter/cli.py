"""`prefect-batchrouter`: the receiver, and the setting up of sweeper and janitor."""

import logging
import os
import socket
import sys
from datetime import timedelta

import click

from batchrouter.errors import BatchrouterError, ConfigError

_FAILED = 1
_WRONG_USE = 2


@click.group()
@click.version_option(package_name="prefect-batchrouter")
def program() -> None:
    """Look after flow runs that sleep while their batch runs.

    Prefect is found by PREFECT_API_URL and the active profile, as by every Prefect command.
    """


@program.command()
@click.option("--pool", required=True, help="The work pool on which both run.")
@click.option(
    "--credentials",
    metavar="BLOCK",
    help="The saved batchrouter-credentials block of the account to look at; else the BATCHROUTER_ "
    "variables of the worker.",
)
@click.option(
    "--sweep-every",
    type=click.IntRange(5),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How often the sweeper looks.",
)
@click.option(
    "--flow",
    "flows",
    multiple=True,
    metavar="NAME",
    help="A flow of yours that calls finish_run, beside run-batch-job: when a run of it is "
    "cancelled, the janitor starts at once and not at the next sweep.",
)
@click.option("--image", help="For a pool that runs containers: an image with this package.")
def setup(
    *,
    pool: str,
    credentials: str | None,
    sweep_every: int,
    flows: tuple[str, ...],
    image: str | None,
) -> None:
    """Deploy the sweeper and the janitor, and make the automation between Prefect and them.

    The sweeper resumes flow runs whose batch has ended although no webhook came. The janitor
    cancels the batches of a flow run that was cancelled while it slept; what no automation told
    it of, the sweeper finds. Running this again brings them up to date.
    """
    from prefect_batchrouter.caretakers import (  # noqa: PLC0415 - `--help` does without Prefect
        CANCEL_AUTOMATION,
        FLOW,
        set_up_caretakers,
    )

    made = set_up_caretakers(
        pool,
        credentials,
        flows=(FLOW, *flows),
        sweep_every=timedelta(seconds=sweep_every),
        image=image,
    )
    click.echo(f"sweep-suspended-runs/batchrouter   every {sweep_every} s   {made.sweeper_id}")
    click.echo(f"cancel-abandoned-runs/batchrouter  {made.janitor_id}")
    click.echo(f"automation {CANCEL_AUTOMATION!r}  {made.cancel_automation_id}")


@program.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8767, show_default=True)
@click.option(
    "--inbox",
    "inbox_url",
    metavar="URL",
    help="Where events are kept, so that a restart forgets none: a SQLAlchemy URL or an fsspec "
    "folder.  [env: BATCHROUTER_INBOX_URL; default: this process's memory]",
)
@click.option(
    "--events-only",
    is_flag=True,
    help="Tell Prefect the event, and leave the resuming to an automation.",
)
def receive(*, host: str, port: int, inbox_url: str | None, events_only: bool) -> None:
    """Receive the router's webhooks and resume the flow runs that sleep for them.

    The secret comes from BATCHROUTER_WEBHOOK_SECRET; `batchrouter webhooks secret` mints one.
    The credentials block names the same secret, and this receiver's public URL as webhook_url.
    """
    import uvicorn  # noqa: PLC0415 - as above

    from prefect_batchrouter.receiving import waking_receiver  # noqa: PLC0415 - as above

    secret = os.environ.get("BATCHROUTER_WEBHOOK_SECRET", "").strip()
    if not secret:
        raise ConfigError(
            "no secret: set BATCHROUTER_WEBHOOK_SECRET; `batchrouter webhooks secret` mints one"
        )
    url = inbox_url or os.environ.get("BATCHROUTER_INBOX_URL", "").strip()
    app = waking_receiver(
        secret, inbox_url=url or "memory://batchrouter-inbox", resume=not events_only
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    listening = _listen(host, port)
    click.echo(f"Receiving on http://{host}:{listening.getsockname()[1]}", err=True)
    config = uvicorn.Config(app, access_log=False, log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is told, so that port 0 is told as the port that it became."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; name another --port"
        ) from error


def main() -> None:
    """Run the program; an error of ours is one line, not a traceback."""
    try:
        program(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BatchrouterError as error:
        click.echo(f"prefect-batchrouter: {error}", err=True)
        sys.exit(_WRONG_USE if isinstance(error, ConfigError) else _FAILED)
