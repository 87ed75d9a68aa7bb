"""API keys: shown once, kept as a hash, limited by scopes (contract section 2)."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from batchrouter.errors import ConfigError
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.ids import new_id
from batchrouter.server.storage.tables import api_keys, key_limits, workspaces

__all__ = [
    "OPERATOR_SCOPES",
    "SCOPES",
    "Caller",
    "KeyLimits",
    "create_key",
    "find_caller",
    "has_keys",
    "revoke_key",
]

SCOPES = ("quote", "submit", "read", "cancel")
"""What a customer's key may do; a key that is minted without a choice may do all of it."""

OPERATOR_SCOPES = ("metrics",)
"""What shows more than one workspace, and is given only by name."""
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        requests_per_minute: The key's own limit; None for the router's.
    """

    workspace_id: str
    key_id: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may do at most; None is no limit of its own.

    Attributes:
        requests_per_minute: Calls; 0 is no limit, whatever the router's own is.
        budget_micro: What its batches may come to, all together, in micro-dollars.
    """

    requests_per_minute: int | None = None
    budget_micro: int | None = None


def create_key(
    conn: Connection,
    *,
    workspace: str,
    scopes: Sequence[str],
    label: str,
    initial_credits_micro: int,
    limits: "KeyLimits | None" = None,
) -> str:
    """Mint a key; a workspace that is not there yet is created with its first credits.

    Returns:
        The key, `bk_live_…`: the only time that it is seen.

    Raises:
        ConfigError: A scope is unknown, or none is given.
    """
    known = (*SCOPES, *OPERATOR_SCOPES)
    unknown = sorted(set(scopes) - set(known))
    if unknown or not scopes:
        raise ConfigError(
            f"scopes: {', '.join(unknown) or 'none given'}; there is {', '.join(known)}"
        )
    workspace_id = conn.execute(
        select(workspaces.c.id).where(workspaces.c.name == workspace)
    ).scalar_one_or_none()
    if workspace_id is None:
        workspace_id = new_id("ws")
        conn.execute(
            workspaces.insert().values(
                id=workspace_id,
                name=workspace,
                balance_micro=initial_credits_micro,
                created_at=now_us(),
            )
        )
    key = f"bk_live_{secrets.token_urlsafe(_SECRET_BYTES)}"
    key_id = new_id("key")
    conn.execute(
        api_keys.insert().values(
            id=key_id,
            workspace_id=workspace_id,
            sha256=_sha256(key),
            scopes=",".join(scope for scope in known if scope in scopes),
            label=label,
            created_at=now_us(),
        )
    )
    if limits is not None:
        conn.execute(
            key_limits.insert().values(
                key_id=key_id,
                requests_per_minute=limits.requests_per_minute,
                budget_micro=limits.budget_micro,
            )
        )
    return key


def find_caller(conn: Connection, key: str) -> Caller | None:
    """Find whom a key belongs to; None when it is unknown or revoked."""
    row = conn.execute(
        select(
            api_keys.c.id,
            api_keys.c.workspace_id,
            api_keys.c.scopes,
            key_limits.c.requests_per_minute,
        )
        .outerjoin(key_limits, key_limits.c.key_id == api_keys.c.id)
        .where(api_keys.c.sha256 == _sha256(key), api_keys.c.revoked_at.is_(None))
    ).one_or_none()
    if row is None:
        return None
    return Caller(
        row.workspace_id, row.id, frozenset(row.scopes.split(",")), row.requests_per_minute
    )


def revoke_key(conn: Connection, key: str) -> bool:
    """Revoke a key from now on; False when it is unknown or revoked already."""
    revoked = conn.execute(
        api_keys
        .update()
        .where(api_keys.c.sha256 == _sha256(key), api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now_us())
    )
    return revoked.rowcount == 1


def has_keys(conn: Connection) -> bool:
    """Tell whether any key was ever minted here."""
    return conn.execute(select(api_keys.c.id).limit(1)).first() is not None


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
