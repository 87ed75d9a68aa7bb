"""Pages of batches, newest first, that stay whole while batches come and go."""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, tuple_

from batchrouter.server.batches.view import summaries, views
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.tables import batches

__all__ = ["ListQuery", "list_batches"]

#: Read by its form alone: a JSON parser would follow whatever a caller has nested.
_POSITION = re.compile(rb'\[(-?[0-9]{1,18}),"([A-Za-z0-9_-]{1,64})"\]')


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A page that is asked for.

    Attributes:
        limit: Batches a page.
        after: The cursor of the page before, or None.
        states: Only batches in one of these; empty for all.
        updated_after_us: Only batches changed at that time or later.
        is_summary: Show ids, states, counts and times only.
    """

    limit: int
    after: str | None
    states: Sequence[str]
    updated_after_us: int | None
    is_summary: bool


def list_batches(conn: Connection, workspace_id: str, query: ListQuery) -> dict[str, Any]:
    """Read one page, in the order (created, id) descending.

    Raises:
        APIError: `invalid_request`, when the cursor is malformed.
    """
    statement = select(batches).where(batches.c.workspace_id == workspace_id)
    if query.after is not None:
        created_at, batch_id = _decode(query.after)
        statement = statement.where(
            tuple_(batches.c.created_at, batches.c.id) < tuple_(created_at, batch_id)
        )
    if query.states:
        statement = statement.where(batches.c.state.in_(query.states))
    if query.updated_after_us is not None:
        statement = statement.where(batches.c.updated_at >= query.updated_after_us)
    ordered = statement.order_by(batches.c.created_at.desc(), batches.c.id.desc())
    # One more than asked for tells whether there is another page.
    found = conn.execute(ordered.limit(query.limit + 1)).all()
    rows = found[: query.limit]
    has_more = len(found) > query.limit
    return {
        "data": summaries(rows) if query.is_summary else views(conn, rows),
        "has_more": has_more,
        "next_cursor": _encode(rows[-1].created_at, rows[-1].id) if has_more else None,
    }


def _encode(created_at: int, batch_id: str) -> str:
    position = json.dumps([created_at, batch_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position = _POSITION.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (UnicodeError, binascii.Error):
        position = None
    if position is None:
        raise refusal("invalid_request", "after: is no cursor; send a page's next_cursor as it is")
    return int(position[1]), position[2].decode()
