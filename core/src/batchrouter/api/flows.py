"""One flow per operation of the API; `Client` and `AsyncClient` only drive them.

Safe to repeat, and therefore repeated: reads; quotes (each is a new lock that costs nothing
and lapses); uploads (an unused file costs nothing and is forgotten); cancel (it asks for a
state, not for a change). Create is repeated only under an idempotency key.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

from batchrouter.api import requests
from batchrouter.api.calls import Caller
from batchrouter.api.models import ArtifactLink, Batch, BatchPage, ManifestFile, Quote
from batchrouter.api.steps import Flow, Send, Work
from batchrouter.api.uploads import Progress, prepare_upload
from batchrouter.errors import ProtocolError


def quote_model(caller: Caller, fields: Mapping[str, Any]) -> Flow[Quote]:
    """Ask for a locked price for one of some models."""
    return _quote(caller, "/v1/quotes/model", fields)


def quote_workflow(caller: Caller, fields: Mapping[str, Any]) -> Flow[Quote]:
    """Ask for a locked price for a workflow's outcome."""
    return _quote(caller, "/v1/quotes/workflow", requests.without_quote_defaults(fields))


def _quote(caller: Caller, path: str, fields: Mapping[str, Any]) -> Flow[Quote]:
    request = Send("POST", path, fields=fields, is_repeatable=True)
    reply, dropped = yield from caller.call_without_unknown(
        request, optional=requests.OPTIONAL_IN_QUOTE
    )
    return Quote.from_wire(reply.json(), server_now=reply.server_now, dropped_fields=dropped)


def upload_manifest(
    caller: Caller,
    source: str | Path | Callable[[], BinaryIO],
    *,
    filename: str | None,
    size_bytes: int | None,
    on_progress: Progress | None,
) -> Flow[ManifestFile]:
    """Stream a manifest up, and hold the server to having got all of it."""
    upload = yield Work(
        lambda: prepare_upload(
            source, filename=filename, size_bytes=size_bytes, on_progress=on_progress
        )
    )
    reply = yield from caller.call(
        Send("POST", "/v1/batches/input-manifests", upload=upload, is_repeatable=True)
    )
    uploaded = ManifestFile.from_wire(reply.json())
    if uploaded.bytes is not None and uploaded.bytes != upload.size_bytes:
        raise ProtocolError(
            f"{caller.host} has {uploaded.bytes} bytes of a manifest of {upload.size_bytes}: "
            "something in between changed it; nothing was bought"
        )
    return uploaded


def submit_batch(
    caller: Caller,
    body: Mapping[str, Any],
    *,
    webhook: Mapping[str, Any] | None,
    idempotency_key: str | None,
) -> Flow[Batch]:
    """Buy what was quoted."""
    requests.check_idempotency_key(idempotency_key)
    fields = dict(body) if webhook is None else {**body, "webhook": dict(webhook)}
    request = Send("POST", "/v1/batches", fields=fields, idempotency_key=idempotency_key)
    reply, dropped = yield from caller.call_without_unknown(
        request, optional=requests.OPTIONAL_IN_BATCH
    )
    return Batch.from_wire(
        reply.json(),
        server_now=reply.server_now,
        replayed=reply.headers.get("idempotent-replayed", "").lower() == "true",
        dropped_fields=dropped,
    )


def list_batches(caller: Caller, query: tuple[tuple[str, str], ...]) -> Flow[BatchPage]:
    """Read one page of the list, newest first."""
    reply, dropped = yield from caller.call_without_unknown(
        Send("GET", "/v1/batches", query=query, is_repeatable=True),
        optional=requests.OPTIONAL_IN_LIST,
    )
    return BatchPage.from_wire(reply.json(), server_now=reply.server_now, dropped_fields=dropped)


def retrieve_batch(
    caller: Caller,
    batch_id: str,
    *,
    include_billing_receipt: bool = False,
    include_partial_output: bool = False,
) -> Flow[Batch]:
    """Read one batch as it is now."""
    wanted = {
        "include_billing_receipt": include_billing_receipt,
        "include_partial_output": include_partial_output,
    }
    query = tuple((name, "true") for name, is_wanted in wanted.items() if is_wanted)
    path = requests.batch_path(batch_id)
    request = Send("GET", path, query=query, is_repeatable=True, template="/v1/batches/{batch_id}")
    reply, dropped = yield from caller.call_without_unknown(
        request, optional=requests.OPTIONAL_IN_READ
    )
    return Batch.from_wire(reply.json(), server_now=reply.server_now, dropped_fields=dropped)


def artifact_url(caller: Caller, batch_id: str) -> Flow[ArtifactLink]:
    """Get a fresh signed URL of the artifact."""
    path = requests.batch_path(batch_id, "artifact-url")
    template = "/v1/batches/{batch_id}/artifact-url"
    reply = yield from caller.call(Send("GET", path, is_repeatable=True, template=template))
    link = ArtifactLink.from_wire(reply.json())
    return link.model_copy(
        update={
            "batch_id": link.batch_id or batch_id,
            "url": urljoin(caller.base_url, link.url),
        }
    )


def cancel_batch(caller: Caller, batch_id: str) -> Flow[Batch]:
    """Ask that nothing more of a batch be sent."""
    path = requests.batch_path(batch_id, "cancel")
    template = "/v1/batches/{batch_id}/cancel"
    reply = yield from caller.call(Send("POST", path, is_repeatable=True, template=template))
    return Batch.from_wire(reply.json(), server_now=reply.server_now)


def server_time(caller: Caller) -> Flow[datetime]:
    """Read the server's clock, without the key."""
    reply = yield from caller.call(Send("GET", "/healthz", is_repeatable=True, with_key=False))
    if reply.server_now is None:
        raise ProtocolError(f"{caller.host} sent no Date: is base_url really a Batches API?")
    return reply.server_now
