"""What an operation's arguments look like on the wire (contract sections 3 to 5)."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from batchrouter.errors import ConfigError
from batchrouter.money import format_usd, parse_usd

OPTIONAL_IN_QUOTE = frozenset({
    "sla_tier",
    "max_price",
    "allow_split",
    "estimated_input_tokens",
    "estimated_output_tokens",
    "max_output_tokens",
    "metadata",
})  # fmt: skip
"""Not in the reference's own bodies, so a server need not know them. Never among them: what
decides who may see the data (`privacy_tier`, `allowed_regions`)."""

OPTIONAL_IN_BATCH = frozenset({"metadata", "sla_tier", "task"})
OPTIONAL_IN_LIST = frozenset({"state", "updated_after", "view"})
OPTIONAL_IN_READ = frozenset({"include_billing_receipt", "include_partial_output"})

_QUOTE_DEFAULTS: Mapping[str, Any] = {
    "routing_mode": "cheapest",
    "privacy_tier": "standard",
    "allowed_regions": ["global"],
}
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{8,128}")


def quote_fields(
    subject: Mapping[str, Any],
    *,
    estimated_items: int,
    max_price: Decimal | str | None,
    allowed_regions: Sequence[str],
    **options: Any,
) -> dict[str, Any]:
    """Return the body of a quote; options that are None are left out.

    Raises:
        ConfigError: `max_price` is no amount in USD.

    Example:
        >>> quote_fields({"models": ["m"]}, estimated_items=3, max_price="2.50",
        ...              allowed_regions=("global",), sla_tier=None)["max_price"]
        {'currency': 'usd', 'amount': '2.50'}
    """
    regions = (allowed_regions,) if isinstance(allowed_regions, str) else allowed_regions
    fields = {
        **subject,
        "estimated_items": estimated_items,
        "allowed_regions": list(regions),
    }
    fields.update({name: value for name, value in options.items() if value is not None})
    if max_price is not None:
        try:
            amount = format_usd(parse_usd(max_price))
        except ValueError as error:
            raise ConfigError(f"max_price: {error}") from None
        fields["max_price"] = {"currency": "usd", "amount": amount}
    return fields


def without_quote_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the server assumes anyway: the reference's workflow quote has none of it."""
    return {name: value for name, value in fields.items() if _QUOTE_DEFAULTS.get(name) != value}


def list_query(
    *,
    limit: int,
    after: str | None,
    state: Sequence[str],
    updated_after: datetime | None,
    view: str | None,
) -> tuple[tuple[str, str], ...]:
    """Return the query of a list call; one ``state`` for each that is asked for."""
    query = [("limit", str(limit))]
    if after is not None:
        query.append(("after", after))
    states = (state,) if isinstance(state, str) else state
    query.extend(("state", one) for one in states)
    if updated_after is not None:
        query.append(("updated_after", rfc3339(updated_after)))
    if view is not None:
        query.append(("view", view))
    return tuple(query)


def rfc3339(moment: datetime) -> str:
    """Write a time as the contract does: UTC, milliseconds, ``Z``.

    Raises:
        ConfigError: It has no time zone.

    Example:
        >>> rfc3339(datetime(2026, 11, 22, 8, 30, tzinfo=UTC))
        '2026-11-22T08:30:00.000Z'
    """
    if moment.tzinfo is None:
        raise ConfigError(f"{moment.isoformat()} has no time zone: use an aware datetime")
    in_utc = moment.astimezone(UTC).replace(tzinfo=None)
    return in_utc.isoformat(timespec="milliseconds") + "Z"


def batch_path(batch_id: str, *rest: str) -> str:
    """Return the path of a batch; the id is opaque and may hold anything.

    Raises:
        ConfigError: The id is empty, or would address something else.

    Example:
        >>> batch_path("batch_1", "cancel")
        '/v1/batches/batch_1/cancel'
    """
    if batch_id in {"", ".", ".."}:
        raise ConfigError(f"{batch_id!r} is no batch id")
    return "/".join(("/v1/batches", quote(batch_id, safe=""), *rest))


def check_idempotency_key(key: str | None) -> None:
    """Refuse a key that the server would not honour.

    Raises:
        ConfigError: It is not 8 to 128 printable ASCII characters.
    """
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ConfigError("idempotency_key: must be 8 to 128 printable ASCII characters, no space")
