"""The HTTP end of the inbox: a bare ASGI app, to be mounted or run by uvicorn as it is.

Nothing is believed before its signature is verified over the raw body, and nothing is
acknowledged before the inbox has it: whatever goes wrong in between, the sender tries again.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from batchrouter.api.offload import in_thread
from batchrouter.errors import BatchrouterError, ConfigError, WebhookError
from batchrouter.webhooks.inbox import Inbox
from batchrouter.webhooks.signing import MALFORMED, verify

MAX_BODY_BYTES = 256 << 10
"""An event is under a kilobyte; this leaves room for what a later version adds."""

BODY_TIMEOUT_S = 10.0
"""A sender gives up after 10 s (contract section 7), so a slower body is no delivery."""

_METHOD_NOT_ALLOWED = 405
_PRUNE_EVERY_S = 3600.0
_LOG = logging.getLogger("batchrouter.webhooks")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def receiver(inbox: Inbox, secret: str) -> AsgiApp:
    """Make an ASGI app that verifies deliveries and puts them into an inbox.

    ``POST`` to any path. Answers: 204 kept, or known already; 401 not to be trusted; 400
    trusted, but no event; 405, 408, 413 for what is no delivery; 503 the inbox cannot be
    written, send it again. Once an hour it prunes the inbox.

    Args:
        inbox: Where events go; written in a thread.
        secret: What the batches were created with.

    Raises:
        ConfigError: The secret is empty: anyone could sign.

    Example:
        Run it with ``uvicorn.run(receiver(open_inbox("sqlite:///inbox.db"), secret))``.
    """
    if not secret:
        raise ConfigError("webhook_secret: must not be empty, or anyone could sign")
    return _Receiver(inbox, secret)


class _Receiver:
    def __init__(self, inbox: Inbox, secret: str) -> None:
        self._inbox = inbox
        self._secret = secret
        self._prune_at = time.monotonic() + _PRUNE_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            try:
                status, code, message = await self._answer(scope, receive)
            except ConnectionError:
                return  # the sender is gone; it will try again
            await _reply(send, status, code, message)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str, str]:
        if scope["method"] != "POST":
            return _METHOD_NOT_ALLOWED, "method_not_allowed", "deliveries are POST requests"
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read_body(headers, receive)
        except TimeoutError:
            return 408, "request_timeout", f"the body took more than {BODY_TIMEOUT_S:g} s"
        if body is None:
            return 413, "request_too_large", f"a delivery has at most {MAX_BODY_BYTES} bytes"
        try:
            event = verify(headers, body, self._secret)
        except WebhookError as error:
            _LOG.warning("refused a delivery: %s", error)
            return (400 if error.code == MALFORMED else 401), error.code, str(error)
        try:
            is_new = await in_thread(lambda: self._inbox.put(event))
            await self._prune_in_time()
        except BatchrouterError as error:
            _LOG.error("could not keep %s, its sender will try again: %s", event.id, error)
            return 503, error.code, "the inbox cannot be written now"
        _LOG.info("%s %s for %s", "kept" if is_new else "knew", event.type, event.batch_id)
        return 204, "", ""

    async def _prune_in_time(self) -> None:
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE_EVERY_S
            await in_thread(self._inbox.prune)


async def _read_body(headers: Iterable[tuple[str, str]], receive: Receive) -> bytes | None:
    """Return the body, None when it is too long; what is told to be too long is not read."""
    told = next((value for name, value in headers if name.lower() == "content-length"), "")
    if told.isascii() and told.isdigit() and int(told[:20]) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _reply(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode() if code else b""
    headers = [(b"cache-control", b"no-store")]
    if body:
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
    if status in {408, 413}:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    if status == _METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
