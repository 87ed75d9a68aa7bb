"""`POST /v1/batches/input-manifests`: the body streams through the checks into the store.

The event loop only moves bytes; parsing, checking and writing run in a worker thread, one
block behind the network, so that neither waits for the other.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from batchrouter.server.batches.files import keep_file, new_file_id, open_intake
from batchrouter.server.http.bodies import refuse_encodings
from batchrouter.server.http.context import Given, requires
from batchrouter.server.http.described import REFUSALS
from batchrouter.server.http.multipart import FilePart
from batchrouter.server.refusals import refusal
from batchrouter.server.services import Services
from batchrouter.server.storage.keys import Caller

__all__ = ["uploads"]

uploads = APIRouter(responses=REFUSALS)

_BLOCK_BYTES = 1024 * 1024
# What the multipart frame may add to the file: boundaries and one part's headers.
_FRAME_BYTES = 64 * 1024

_DOCUMENTED = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@uploads.post(
    "/v1/batches/input-manifests",
    status_code=201,
    tags=["batches"],
    summary="Upload a JSONL manifest",
    openapi_extra=_DOCUMENTED,
)
async def upload_manifest(
    request: Request,
    caller: Annotated[Caller, Depends(requires("submit"))],
    services: Given,
) -> dict[str, Any]:
    """Check a manifest line by line while it streams to the store; nothing bad is kept."""
    refuse_encodings(request)
    max_bytes = services.config.limits.manifest_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes + _FRAME_BYTES:
        raise _too_large(max_bytes)
    return await _take_in(request, caller, services)


async def _take_in(request: Request, caller: Caller, services: Services) -> dict[str, Any]:
    file_id = new_file_id()
    with open_intake(services, file_id) as intake:
        part = FilePart(request.headers.get("content-type", ""), intake.feed)
        working: asyncio.Task[None] | None = None
        try:
            left_bytes = services.config.limits.manifest_bytes + _FRAME_BYTES
            async for block in _blocks(request):
                # What stands before and behind the part counts too, or it would have no end.
                left_bytes -= len(block)
                if left_bytes < 0:
                    raise _too_large(services.config.limits.manifest_bytes)
                if working is not None:
                    await working
                working = asyncio.create_task(run_in_threadpool(part.feed, block))
        finally:
            # The thread uses what this block closes, so it is waited for in any case.
            if working is not None:
                await asyncio.wait([working])
        if working is not None:
            await working
        part.finish()
        facts = await run_in_threadpool(intake.finish)
    kept = await run_in_threadpool(
        keep_file, services, caller.workspace_id, file_id, part.filename, facts
    )
    services.metrics.count_upload(kept["bytes"])
    return kept


def _too_large(max_bytes: int) -> Exception:
    return refusal(
        "request_too_large",
        f"the manifest is over {max_bytes:,} bytes: split it",
        max_bytes=max_bytes,
    )


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """Gather the stream's small pieces, so that a hop to a thread pays."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield b"".join(pieces)
            pieces = []
            size = 0
    if size:
        yield b"".join(pieces)
