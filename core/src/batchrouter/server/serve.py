"""The router as a process: its socket, its first key, its logs, its end."""

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchrouter.errors import ConfigError, WorkerDiedError
from batchrouter.server.config import load_config
from batchrouter.server.heap import share_heaps
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.keys import (
    SCOPES,
    KeyLimits,
    create_key,
    has_keys,
    revoke_key,
)
from batchrouter.server.storage.places import Places

if TYPE_CHECKING:
    from fastapi import FastAPI

    from batchrouter.server.app import Role

__all__ = ["migrate", "mint_key", "revoke", "serve"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
_FINISH_REQUESTS_S = 10
_BACKLOG = 2048


def serve(
    data_dir: str | Path,
    config_path: str | Path | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    allow_public_host: bool = False,
    database: str | None = None,
    objects: str | None = None,
    role: "Role" = "both",
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was being answered, and return.

    The first start mints an API key into `DATA/api_key` (mode 0600) and says how to use it.
    The URL that is listened on is printed, and written to `DATA/address`.

    Args:
        data_dir: The data folder.
        config_path: `router.toml`; None for the built-in simulated lanes.
        host: The address to listen on.
        port: The port; 0 for any free one.
        allow_public_host: Must be set for an address that other machines can reach.
        database: `postgresql://…`, whose tables `migrate` has made; default: what
            `BATCHROUTER_DATABASE` or the configuration names, else SQLite in the folder.
        objects: `s3://bucket/prefix` for manifests and artifacts; default: what
            `BATCHROUTER_OBJECTS` or the configuration names, else the folder.
        role: `api` answers callers and `worker` does the work, as many of each as wanted on one
            database; `both` is one process for all. A worker answers `/healthz`, `/readyz` and
            `/metrics` alone.

    Raises:
        ConfigError: The configuration, the folder, the database or the address cannot be used.
        WorkerDiedError: This process was silent for so long that others have its work now.
    """
    os.umask(0o077)
    share_heaps()
    config = load_config(config_path)
    is_loopback = _is_loopback(host)
    if not is_loopback and not allow_public_host:
        raise ConfigError(
            f"{host} can be reached by other machines, and keys would travel in clear text: put"
            " a TLS proxy before the router, and pass --allow-public-host if you mean it"
        )
    places = Places.find(data_dir, config, database=database, objects=objects)
    listener = _listen(host, port)
    address = _url_of(listener)
    _set_up_logs()
    if role != "worker":
        _welcome(places, address, initial_credits_micro=config.credits.initial_micro)

    from batchrouter.server.app import AppSettings, create_app  # noqa: PLC0415 - checks come first

    settings = AppSettings(
        places.folder.root,
        config,
        public_url=address,
        is_loopback=is_loopback,
        database_url=places.database_url,
        objects_url=places.objects_url,
        role=role,
    )
    _run(create_app(settings), listener, address, places.folder)


def migrate(database: str) -> list[str]:
    """Make or update the tables of a shared database; routers may run on it meanwhile.

    Args:
        database: `postgresql://…`.

    Returns:
        The tables that were made; none when everything was there.

    Raises:
        ConfigError: Nothing answers there, or it belongs to a newer router.
    """
    from batchrouter.server.storage.postgres import connect  # noqa: PLC0415 - only where one is used
    from batchrouter.server.storage.schema import migrate as migrate_tables  # noqa: PLC0415 - as above

    opened = connect(database)
    try:
        return migrate_tables(opened)
    finally:
        opened.close()


def mint_key(
    data_dir: str | Path,
    scopes: Sequence[str] = SCOPES,
    label: str = "",
    *,
    workspace: str = "default",
    config_path: str | Path | None = None,
    database: str | None = None,
    limits: KeyLimits | None = None,
) -> str:
    """Mint an API key; a running router knows it at once.

    Args:
        data_dir: The router's data folder.
        scopes: Out of `quote`, `submit`, `read`, `cancel`.
        label: For people.
        workspace: Whose key it is; a new name makes a workspace with the initial credits.
        config_path: Where the initial credits of a new workspace stand.
        database: As for `serve`.
        limits: The key's own; None for no own ones.

    Returns:
        The key: only its hash is kept.

    Raises:
        ConfigError: A scope is unknown, or the folder cannot be used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mint_key(folder, ["read"], "dashboard")[:8]
        'bk_live_'
    """
    config = load_config(config_path)
    opened = Places.find(data_dir, config, database=database).open_database()
    try:
        with opened.writing() as conn:
            return create_key(
                conn,
                workspace=workspace,
                scopes=scopes,
                label=label,
                initial_credits_micro=config.credits.initial_micro,
                limits=limits,
            )
    finally:
        opened.close()


def revoke(data_dir: str | Path, key: str) -> bool:
    """Revoke an API key at once; False when it is unknown or revoked already."""
    database = Places.find(data_dir).open_database()
    try:
        with database.writing() as conn:
            return revoke_key(conn, key)
    finally:
        database.close()


def _welcome(places: Places, address: str, *, initial_credits_micro: int) -> None:
    """Mint the first key, and say how to use it."""
    folder = places.folder
    database = places.open_database()
    try:
        with database.writing() as conn:
            if has_keys(conn):
                return
            key = create_key(
                conn,
                workspace="default",
                scopes=SCOPES,
                label="first key",
                initial_credits_micro=initial_credits_micro,
            )
            # Before the commit: a key that nobody has seen must not be the only one.
            _write_secret(folder.api_key, key)
    finally:
        database.close()
    sys.stdout.write(
        f"batchrouter: a first API key is in {folder.api_key}; use it so:\n"
        f"  export BATCHROUTER_API_KEY=$(cat {folder.api_key})\n"
        f"  export BATCHROUTER_BASE_URL={address}\n"
    )


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())


def _run(app: "FastAPI", listener: socket.socket, address: str, folder: DataFolder) -> None:
    import uvicorn  # noqa: PLC0415 - only a router that really serves needs it

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                folder.address.write_text(f"{address}\n", encoding="utf-8")
                sys.stdout.write(f"batchrouter: listening on {address}\n")
                sys.stdout.flush()

    settings = uvicorn.Config(
        app,
        # uvicorn's access log writes query strings, which sign URLs.
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_FINISH_REQUESTS_S,
    )
    server = Server(settings)
    # uvicorn raises the signal once more when it has stopped: by then everything is done.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
    except SystemExit:
        # uvicorn leaves so when the start fails.
        pass
    if app.state.is_taken_over:
        raise WorkerDiedError(
            "this process was silent for longer than its lease lasts, and another worker goes on"
            " with its work: start it again"
        )
    if not server.started:
        raise app.state.start_refused or ConfigError("the router cannot start: its log says why")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _set_up_logs() -> None:
    from batchrouter.server.http.logs import JsonLines  # noqa: PLC0415 - loads the web framework

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("batchrouter").setLevel(logging.INFO)
