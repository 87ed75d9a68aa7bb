"""`GET /metrics`: who may read what the router says of itself.

The figures are of all workspaces together. A router that listens on loopback shows them to its
own machine, as it shows its data folder; any other asks for a key with the scope `metrics`.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from batchrouter.server.http.context import Given, requires
from batchrouter.server.http.described import REFUSALS

__all__ = ["monitoring"]

monitoring = APIRouter(responses=REFUSALS)

_EXPOSED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}
}
_admit = requires("metrics")


@monitoring.get(
    "/metrics",
    tags=["operation"],
    summary="Counters and gauges for Prometheus",
    response_class=Response,
    responses=_EXPOSED,
)
async def metrics(request: Request, services: Given) -> Response:
    """Requests, open batches, items by lane, money, webhooks, the process."""
    if not services.is_loopback:
        await _admit(request)
    exposed = await run_in_threadpool(services.metrics.exposed)
    return Response(exposed, media_type=CONTENT_TYPE_LATEST)
