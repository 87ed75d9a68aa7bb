"""What `doctor` finds out about webhooks: one signed delivery goes the whole way, if it can.

It is sent from here and not by the router, so it proves the receiver, its secret and its inbox,
and not the network between the router and the receiver.
"""

import json
import secrets
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from batchrouter.cli.finding import Finding
from batchrouter.errors import BatchrouterError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings

_TIMEOUT_S: Final = 5.0
_MOST_ANSWER_BYTES: Final = 4096
_NO_CONTENT, _UNAUTHORIZED, _UNAVAILABLE = 204, 401, 503


def examine_webhooks(settings: "Settings") -> Iterator[Finding]:
    """See that the three settings are there, and send a delivery to the receiver."""
    together = (settings.webhook_url, settings.webhook_secret, settings.inbox_url)
    if not any(together):
        yield Finding("ok", "webhooks", "not used: runs ask the router every few seconds")
        return
    names = ("WEBHOOK_URL", "WEBHOOK_SECRET", "INBOX_URL")
    missing = [
        f"BATCHROUTER_{name}" for name, value in zip(names, together, strict=True) if not value
    ]
    if missing:
        yield Finding(
            "warn",
            "webhooks",
            f"set up in part: {', '.join(missing)} not set",
            "A wait is woken by deliveries only when all three are set.",
        )
        return
    yield _delivery(settings)


def _delivery(settings: "Settings") -> Finding:
    from batchrouter.api.settings import masked_url  # noqa: PLC0415 - loads pydantic

    shown = masked_url(settings.webhook_url or "")
    event_id = f"evt_{secrets.token_hex(16)}"
    try:
        status = _post(settings, event_id)
    except (OSError, HTTPException, ValueError) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return Finding(
            "warn",
            "webhooks",
            f"{shown} does not answer this machine: {told}",
            "Is `batchrouter webhooks serve` running? The router must reach it, this machine "
            "need not.",
        )
    if status == _NO_CONTENT:
        return _arrival(settings, shown, event_id)
    advice = {
        _UNAUTHORIZED: "Its BATCHROUTER_WEBHOOK_SECRET is not this one, or a clock is off.",
        _UNAVAILABLE: "The receiver cannot write its inbox: its log says why.",
    }.get(status, "Does the URL lead to `batchrouter webhooks serve`, and through every proxy?")
    told = f"{shown} answered {status} to a signed delivery"
    return Finding("fail", "webhooks", told, advice, 5)


def _post(settings: "Settings", event_id: str) -> int:
    from batchrouter.webhooks.signing import sign  # noqa: PLC0415 - `--help` does without

    url, secret = settings.webhook_url or "", settings.webhook_secret
    now_s = int(time.time())
    event = {"id": event_id, "type": "doctor.ping", "created": now_s, "data": {}}
    body = json.dumps(event).encode()
    signature = sign(
        secret.get_secret_value() if secret else "", body, event_id=event_id, timestamp=now_s
    )
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json", **signature})
        answer = connection.getresponse()
        answer.read(_MOST_ANSWER_BYTES)
        return answer.status
    finally:
        connection.close()


def _arrival(settings: "Settings", shown: str, event_id: str) -> Finding:
    """Look for the delivery where the runs would."""
    from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - loads SQLAlchemy

    try:
        inbox = open_inbox(settings.inbox_url or "", **settings.storage_options)
        try:
            events, _ = inbox.events_since(None)
        finally:
            inbox.close()
    except BatchrouterError:
        return Finding("ok", "webhooks", f"{shown} takes deliveries")  # the inbox has its own line
    if any(event.id == event_id for event in events):
        return Finding("ok", "webhooks", f"a delivery to {shown} arrived in the inbox")
    return Finding(
        "fail",
        "webhooks",
        f"{shown} took a delivery, and it is not in this inbox",
        "The receiver writes into another inbox: give it the same BATCHROUTER_INBOX_URL.",
        10,
    )
