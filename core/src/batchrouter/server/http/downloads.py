"""What signed URLs lead to: an artifact's bytes, whole or from any place on."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import select

from batchrouter.server.batches.artifacts import find_readable, signer_of
from batchrouter.server.http.context import Given
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.tables import batches

__all__ = ["downloads"]

downloads = APIRouter()

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class _Window:
    start: int
    end: int
    is_partial: bool


@downloads.api_route(
    "/artifacts/{batch_id}.jsonl", methods=["GET", "HEAD"], include_in_schema=False
)
def read_artifact(batch_id: str, request: Request, services: Given) -> Response:
    """Stream an artifact to whoever holds a URL that this router signed."""
    signer_of(services).check(
        f"/artifacts/{batch_id}.jsonl", dict(request.query_params), now_s=int(time.time())
    )
    with services.database.reading() as conn:
        batch = find_readable(
            conn.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()
        )
    size = services.objects.size_bytes(batch.artifact_key)
    if size is None:
        raise refusal("artifact_expired", "the artifact is gone")
    etag = f'"{batch.artifact_sha256}"'
    window = _window(request.headers, size, etag)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Disposition": f'attachment; filename="{batch_id}.jsonl"',
        "Content-Length": str(window.end - window.start),
        "ETag": etag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if window.is_partial:
        headers["Content-Range"] = f"bytes {window.start}-{window.end - 1}/{size}"
    status = 206 if window.is_partial else 200
    kind = "application/jsonl"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    blocks = services.objects.stream(batch.artifact_key, window.start, window.end)
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=kind)


def _window(headers: Mapping[str, str], size: int, etag: str) -> _Window:
    """Read a `Range` header as RFC 9110 section 14 wants it; several ranges get the whole.

    Raises:
        APIError: `range_not_satisfiable`, when the range starts behind the end.
    """
    whole = _Window(0, size, is_partial=False)
    asked = _RANGE.fullmatch(headers.get("range", "").strip())
    if asked is None or asked.group(0) == "bytes=-" or headers.get("if-range", etag) != etag:
        return whole
    first, last = asked.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
    else:
        start, end = max(0, size - int(last)), size
    if start >= size:
        raise refusal("range_not_satisfiable", f"the artifact has {size} bytes", size_bytes=size)
    return _Window(start, end, is_partial=True)
