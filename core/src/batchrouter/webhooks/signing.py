"""Who sent these bytes, and when: the signatures of contract section 7, both ends of them.

Pure standard library, because the router signs with the same lines that a receiver verifies
with. Two schemes travel side by side:

- ``X-Batchrouter-Signature``: hex HMAC-SHA256 of the body under the whole secret. It has no
  time of its own, so alone it counts only while the body's ``created`` is young.
- Standard Webhooks (``webhook-id``, ``webhook-timestamp``, ``webhook-signature``), sent when
  the secret is ``whsec_`` and strict base64 of 24 to 64 bytes.

Every signature that came must verify: a forger cannot pick the weaker scheme by adding to a
delivery, and one who strips the stronger scheme meets the age limit of the weaker.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, cast

from batchrouter.errors import WebhookError

SIGNATURE_HEADER = "x-batchrouter-signature"
ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
STANDARD_SIGNATURE_HEADER = "webhook-signature"

TOLERANCE_S = 300
"""How far a signed timestamp may be from this clock, either way (contract section 7)."""

MAX_BARE_AGE_S = 25 * 3600
"""Retries end after 24 h; an hour is for clocks and queues. Ids are remembered longer."""

MALFORMED = "webhook_malformed"
"""`WebhookError.code` when the sender is proven and the body is still not an event."""

_MAX_ID_CHARS = 200
_PREFIX = "whsec_"
_SECRET_BYTES = 32
_MIN_KEY_BYTES = 24
_MAX_KEY_BYTES = 64
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")
_SIGNING_HEADERS = (SIGNATURE_HEADER, ID_HEADER, TIMESTAMP_HEADER, STANDARD_SIGNATURE_HEADER)


@dataclass(frozen=True, slots=True)
class Event:
    """One delivery whose sender is proven.

    Attributes:
        id: The event's own id, the same at every try: dedupe by it.
        type: For example ``batch.completed``; unknown types are kept.
        created_at: When the router wrote the event, aware UTC.
        batch_id: The batch that changed; empty when the event is about none.
        state: The batch's state as the sender spelled it, empty when not told. A hint only.
        data: The event's ``data``. Numbers with a fraction stand as decimal strings, so that
            no float touches money.
    """

    id: str
    type: str
    created_at: datetime
    batch_id: str
    state: str
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a JSON-safe mapping, the inverse of `from_dict`."""
        return {
            "id": self.id,
            "type": self.type,
            "created_at": self.created_at.isoformat(),
            "batch_id": self.batch_id,
            "state": self.state,
            "data": self.data,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError, ValueError: It was written by something else.
        """
        return cls(
            id=fields["id"],
            type=fields["type"],
            created_at=datetime.fromisoformat(fields["created_at"]),
            batch_id=fields["batch_id"],
            state=fields["state"],
            data=dict(fields["data"]),
        )


def mint_secret() -> str:
    """Make a secret that both schemes accept: ``whsec_`` and base64 of 32 random bytes.

    Example:
        >>> secret = mint_secret()
        >>> secret.startswith("whsec_"), len(secret)
        (True, 50)
    """
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, body: bytes, *, event_id: str, timestamp: int) -> dict[str, str]:
    """Return the signature headers of one delivery.

    Args:
        secret: What the batch was created with, 8 to 256 characters.
        body: The exact bytes that are sent.
        event_id: The event's id, the same at every try.
        timestamp: Unix seconds of this try, not of the event.

    Returns:
        Lower-case header names. The three Standard Webhooks headers are there only when the
        secret carries a key for them.

    Example:
        >>> sorted(sign("not-a-standard-secret", b"{}", event_id="evt_1", timestamp=1))
        ['x-batchrouter-signature']
    """
    headers = {SIGNATURE_HEADER: _bare_signature(secret, body)}
    key = _standard_key(secret)
    if key is not None:
        headers[ID_HEADER] = event_id
        headers[TIMESTAMP_HEADER] = str(timestamp)
        signature = _standard_signature(key, event_id, str(timestamp), body)
        headers[STANDARD_SIGNATURE_HEADER] = f"v1,{base64.b64encode(signature).decode()}"
    return headers


def verify(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: bytes,
    secret: str,
    *,
    now: float | None = None,
) -> Event:
    """Prove that the holder of the secret sent these bytes lately, then read them.

    A second delivery of one event verifies as the first did: the inbox tells them apart.

    Args:
        headers: The request's headers, names in any case.
        body: The raw body, before any decoding.
        secret: What the batch was created with.
        now: Unix seconds; this machine's clock when left out.

    Raises:
        WebhookError: No signature, one that does not verify, or one that is too old; with
            code ``webhook_malformed`` when the signatures hold and the body is no event.

    Example:
        >>> body = b'{"id": "evt_1", "type": "batch.completed", "created": 5, "data": {}}'
        >>> verify(sign("hunter2hunter2", body, event_id="evt_1", timestamp=5),
        ...        body, "hunter2hunter2", now=6).type
        'batch.completed'
    """
    clock = time.time() if now is None else now
    signing = _signing_headers(headers)
    bare = signing.get(SIGNATURE_HEADER)
    standard = any(name in signing for name in _SIGNING_HEADERS[1:])
    if bare is None and not standard:
        raise WebhookError("the delivery carries no signature: it may come from anyone")
    if bare is not None and not _same(bare.encode(), _bare_signature(secret, body).encode()):
        raise WebhookError(f"{SIGNATURE_HEADER} does not match the body under this secret")
    if standard:
        _verify_standard(signing, body, secret, clock)
    event = _read_event(body, signed_id=signing.get(ID_HEADER))
    if not standard:
        _check_age(event, clock)
    return event


def _signing_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    pairs = (
        cast("Iterable[tuple[str, str]]", headers.items())
        if isinstance(headers, Mapping)
        else headers
    )
    found: dict[str, str] = {}
    for name, value in pairs:
        lowered = name.lower()
        if lowered in _SIGNING_HEADERS:
            if lowered in found:
                raise WebhookError(f"{lowered} came twice: which one counts cannot be told")
            found[lowered] = value.strip()
    return found


def _verify_standard(signing: Mapping[str, str], body: bytes, secret: str, clock: float) -> None:
    event_id = signing.get(ID_HEADER)
    timestamp = signing.get(TIMESTAMP_HEADER)
    signatures = signing.get(STANDARD_SIGNATURE_HEADER)
    if not event_id or not timestamp or not signatures:
        raise WebhookError(
            "of webhook-id, webhook-timestamp and webhook-signature some are missing"
        )
    key = _standard_key(secret)
    if key is None:
        raise WebhookError("webhook-signature came, but this secret is none that could make it")
    if not _UNIX_SECONDS.fullmatch(timestamp):
        raise WebhookError("webhook-timestamp is not a Unix time in seconds")
    expected = _standard_signature(key, event_id, timestamp, body)
    # Several signatures may stand there while a secret is being changed: one must match.
    if not any(_same(expected, made) for made in _v1_signatures(signatures)):
        raise WebhookError("webhook-signature does not match the body under this secret")
    if abs(clock - int(timestamp)) > TOLERANCE_S:
        raise WebhookError(
            f"webhook-timestamp is more than {TOLERANCE_S} s away from this machine's clock: "
            "an old delivery sent again, or a clock that is wrong"
        )


def _v1_signatures(header: str) -> Iterable[bytes]:
    for entry in header.split(" "):
        version, _, encoded = entry.partition(",")
        if version == "v1":
            try:
                yield base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                continue


def _check_age(event: Event, clock: float) -> None:
    age_s = clock - event.created_at.timestamp()
    # From the future only as far as clocks differ: a date far ahead would outlive the memory
    # of the inbox, and could then be sent again.
    if age_s > MAX_BARE_AGE_S or age_s < -TOLERANCE_S:
        raise WebhookError(
            f"the event was created at {event.created_at.isoformat()}, outside the "
            f"{MAX_BARE_AGE_S} s in which {SIGNATURE_HEADER} counts alone"
        )


def _read_event(body: bytes, *, signed_id: str | None) -> Event:
    try:
        envelope = json.loads(body, parse_float=str, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _malformed("the body is not JSON") from None
    if not isinstance(envelope, dict):
        raise _malformed("the body is not a JSON object")
    fields = cast("dict[str, Any]", envelope)
    data = fields.get("data")
    facts: dict[str, Any] = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    event_id = fields.get("id") or signed_id
    event_type = fields.get("type")
    if not isinstance(event_id, str) or not isinstance(event_type, str):
        raise _malformed("id and type must be strings")
    if not event_id.isprintable() or len(event_id) > _MAX_ID_CHARS:
        raise _malformed(f"an id has at most {_MAX_ID_CHARS} printable characters")
    return Event(
        id=event_id,
        type=event_type,
        created_at=_read_created(fields.get("created", fields.get("created_at"))),
        batch_id=_text(facts.get("batch_id") or facts.get("id")),
        state=_text(facts.get("state") or facts.get("status")),
        data=facts,
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_created(value: object) -> datetime:
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            read = datetime.fromisoformat(value)
            return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise _malformed("created must be a Unix time in seconds")


def _malformed(problem: str) -> WebhookError:
    error = WebhookError(f"the sender is proven, but this is no event: {problem}")
    error.code = MALFORMED
    return error


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _same(left: bytes, right: bytes) -> bool:
    return hmac.compare_digest(left, right)


def _bare_signature(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _standard_signature(key: bytes, event_id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()


def _standard_key(secret: str) -> bytes | None:
    """Return the key that a Standard Webhooks secret stands for; None for any other secret."""
    if not secret.startswith(_PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES else None
