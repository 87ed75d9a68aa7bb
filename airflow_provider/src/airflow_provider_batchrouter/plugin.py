"""The webhook end inside Airflow's api-server: verify, keep in the inbox, answer.

``POST /batchrouter/webhooks/<connection id>``. Airflow does not authenticate a plugin's
routes, so only the signature counts, and only connections that the configuration names are
looked up. Triggers and sensors read the inbox; nothing here touches Airflow's database beyond
that one connection.
"""

import asyncio
import json
import logging
import time
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_batchrouter.accounts import DEFAULT_CONNECTION

_log = logging.getLogger(__name__)

URL_PREFIX = "/batchrouter"
_KEPT_S = 300.0
_FORGOTTEN_S = 10.0


class WebhookApp:
    """A bare ASGI app over one receiver a connection, each opened at its first delivery."""

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[float, Any]] = {}
        self._opening: asyncio.Lock | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a delivery: 204 kept, 401 not to be trusted, 404 no such end, 503 come again."""
        if scope["type"] != "http":
            return
        conn_id = _connection_in(str(scope["path"]))
        if conn_id not in _served():
            await _refuse(send, 404, "there is no webhook end here")
            return
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            receiver = await self._receiver(conn_id)
        if receiver is None:
            await _refuse(send, 503, "the webhook end is not ready")
            return
        await receiver(scope, receive, send)

    async def _receiver(self, conn_id: str) -> Any:
        until, receiver = self._receivers.get(conn_id, (0.0, None))
        now = time.monotonic()
        if now < until:
            return receiver
        try:
            receiver = await asyncio.to_thread(_open_receiver, conn_id)
            kept_s = _KEPT_S
        except Exception as error:  # noqa: BLE001 - whatever a secrets backend raises
            # Its sender tries again; the old one may still serve.
            _log.error("no webhooks for connection %s: %s", conn_id, _told(error))
            kept_s = _FORGOTTEN_S
        self._receivers[conn_id] = (now + kept_s, receiver)
        return receiver


def _told(error: Exception) -> str:
    from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - loaded with the first one

    return str(error) if isinstance(error, BatchrouterError) else type(error).__name__


def _connection_in(path: str) -> str:
    """The connection's id at the end of the path; the default one where it ends in webhooks."""
    last = path.rstrip("/").rpartition("/")[2]
    return DEFAULT_CONNECTION if last in {"webhooks", "batchrouter"} else last


def _served() -> frozenset[str]:
    from airflow.providers.common.compat.sdk import conf  # noqa: PLC0415 - loads settings

    told = conf.get("batchrouter", "webhook_connections", fallback=DEFAULT_CONNECTION)
    return frozenset(name.strip() for name in str(told).split(",") if name.strip())


def _open_receiver(conn_id: str) -> Any:
    """Read the connection from the api-server's secrets backends, and open its inbox.

    Raises:
        ConfigError: The connection lacks the secret or the inbox.
    """
    from airflow.models.connection import Connection  # noqa: PLC0415 - the api-server only
    from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - likewise
        AirflowNotFoundException,
        BaseHook,
    )

    from airflow_provider_batchrouter.accounts import settings_from  # noqa: PLC0415 - likewise
    from batchrouter.errors import ConfigError  # noqa: PLC0415 - loads pydantic
    from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy
    from batchrouter.webhooks.receiver import receiver  # noqa: PLC0415 - likewise

    try:
        connection: Any = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        # Airflow 3.2 calls a variable unknown whose extra is an object in its JSON.
        connection = BaseHook.get_connection(conn_id)
    settings = settings_from(connection, connection.extra_dejson)
    if settings.webhook_secret is None or settings.inbox_url is None:
        raise ConfigError("it has no webhook_secret or no inbox_url, so nothing can be received")
    inbox = open_inbox(settings.inbox_url, **settings.storage_options)
    return receiver(inbox, settings.webhook_secret.get_secret_value())


async def _refuse(send: Any, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BatchrouterPlugin(AirflowPlugin):
    """Mounts the webhook end; without a connection that has a secret it receives nothing."""

    name = "batchrouter"
    fastapi_apps: list[dict[str, Any]] = [  # noqa: RUF012 - as Airflow declares it
        {"app": WebhookApp(), "url_prefix": URL_PREFIX, "name": "batchrouter webhooks"}
    ]
