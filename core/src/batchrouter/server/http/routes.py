"""The JSON endpoints of the contract (section 1), each a few lines over what does the work."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from batchrouter import killpoints
from batchrouter.server.batches.artifacts import artifact_link, partial_link, require_artifact
from batchrouter.server.batches.create import Purchase, create_batch
from batchrouter.server.batches.listing import ListQuery, list_batches
from batchrouter.server.batches.orders import Order, WebhookOrder, body_sha256
from batchrouter.server.batches.states import CANCELLABLE, STATES, request_cancel
from batchrouter.server.batches.view import billing_receipt, find_batch, views
from batchrouter.server.http.bodies import documented, parse, read_body
from batchrouter.server.http.context import Given, requires, services_of
from batchrouter.server.http.described import IDEMPOTENCY_KEY, LIST_PARAMETERS, REFUSALS
from batchrouter.server.log_fields import note_in_log
from batchrouter.server.quoting.questions import ModelQuestion, WorkflowQuestion
from batchrouter.server.quoting.quotes import make_quote
from batchrouter.server.refusals import refusal
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import us_from_datetime
from batchrouter.server.storage.keys import Caller

__all__ = ["routes"]

routes = APIRouter(responses=REFUSALS)

_MAX_LIMIT = 1000
_LIMIT = re.compile(r"[0-9]{1,4}", re.ASCII)
_KEY_LENGTHS = range(8, 129)


async def _body(request: Request) -> bytes:
    return await read_body(request, services_of(request).config.limits.json_body_bytes)


# Dependencies run in the order in which they stand: key and scope before the body.
Quoter = Annotated[Caller, Depends(requires("quote"))]
Submitter = Annotated[Caller, Depends(requires("submit"))]
Reader = Annotated[Caller, Depends(requires("read"))]
Canceller = Annotated[Caller, Depends(requires("cancel"))]
Body = Annotated[bytes, Depends(_body)]


@routes.post(
    "/v1/quotes/model",
    tags=["quotes"],
    summary="Lock a price for a model",
    openapi_extra=documented(ModelQuestion),
)
def quote_model(caller: Quoter, body: Body, services: Given) -> dict[str, Any]:
    """Lock the price of the cheapest eligible lane, or of a split over lanes."""
    question, _ = parse(ModelQuestion, body)
    return make_quote(services.database, services.config, caller.workspace_id, question)


@routes.post(
    "/v1/quotes/workflow",
    tags=["quotes"],
    summary="Lock a price for a workflow's outcome",
    openapi_extra=documented(WorkflowQuestion),
)
def quote_workflow(caller: Quoter, body: Body, services: Given) -> dict[str, Any]:
    """Lock the price of a curated workflow; the router picks the model."""
    question, _ = parse(WorkflowQuestion, body)
    return make_quote(services.database, services.config, caller.workspace_id, question)


@routes.post(
    "/v1/batches",
    status_code=202,
    tags=["batches"],
    summary="Submit a batch",
    openapi_extra={**documented(Order), "parameters": [IDEMPOTENCY_KEY]},
)
def submit_batch(
    request: Request, response: Response, caller: Submitter, body: Body, services: Given
) -> dict[str, Any]:
    """Buy a batch at its locked price, once."""
    order, sent = parse(Order, body)
    if order.webhook is not None:
        _check_webhook(services, order.webhook)
    purchase = Purchase(
        workspace_id=caller.workspace_id,
        order=order,
        body_sha256=body_sha256(sent),
        idempotency_key=_idempotency_key(request),
        key_id=caller.key_id,
    )
    batch_id, is_replay = create_batch(services, purchase)
    note_in_log(batch_id=batch_id)
    if is_replay:
        response.headers["Idempotent-Replayed"] = "true"
    return _show(services, caller, batch_id)


@routes.get(
    "/v1/batches",
    tags=["batches"],
    summary="List batches, newest first",
    openapi_extra={"parameters": LIST_PARAMETERS},
)
def list_all(request: Request, caller: Reader, services: Given) -> dict[str, Any]:
    """Page through a workspace's batches."""
    query = _list_query(request)
    with services.database.reading() as conn:
        return list_batches(conn, caller.workspace_id, query)


@routes.get("/v1/batches/{batch_id}", tags=["batches"], summary="Retrieve a batch")
def retrieve_batch(
    batch_id: str,
    response: Response,
    caller: Reader,
    services: Given,
    *,
    include_billing_receipt: Annotated[bool, Query()] = False,
    include_partial_output: Annotated[bool, Query()] = False,
) -> dict[str, Any]:
    """Show status, settled and quoted total, lanes, and why it was routed so."""
    with services.database.reading() as conn:
        batch = find_batch(conn, caller.workspace_id, batch_id)
        shown = views(conn, [batch])[0]
        if include_billing_receipt:
            shown["billing_receipt"] = billing_receipt(conn, batch)
    if include_partial_output:
        shown["partial_output"] = partial_link(services, batch)
        response.headers["Cache-Control"] = "no-store"
    return shown


@routes.get(
    "/v1/batches/{batch_id}/artifact-url", tags=["batches"], summary="Get a signed artifact URL"
)
def artifact_url(
    batch_id: str, response: Response, caller: Reader, services: Given
) -> dict[str, Any]:
    """Sign a fresh, short-lived URL of the output of a batch that succeeded."""
    with services.database.reading() as conn:
        batch = find_batch(conn, caller.workspace_id, batch_id)
    require_artifact(batch)
    response.headers["Cache-Control"] = "no-store"
    return artifact_link(services, batch)


@routes.post(
    "/v1/batches/{batch_id}/cancel", status_code=202, tags=["batches"], summary="Cancel a batch"
)
def cancel_batch(batch_id: str, caller: Canceller, services: Given) -> dict[str, Any]:
    """Stop further routing; what a provider already has may complete and be billed."""
    with services.database.writing() as conn:
        batch = find_batch(conn, caller.workspace_id, batch_id)
        if batch.state not in {*CANCELLABLE, "cancelling"}:
            raise refusal(
                "batch_not_cancellable",
                f"the batch is {batch.state}, and can no longer be cancelled",
                state=batch.state,
            )
        request_cancel(conn, batch_id)
        killpoints.reached("cancel.before_commit")
    killpoints.reached("cancel.after_commit")
    if services.engine is not None:
        services.engine.cancel(batch_id)
    return _show(services, caller, batch_id)


def _show(services: Services, caller: Caller, batch_id: str) -> dict[str, Any]:
    with services.database.reading() as conn:
        return views(conn, [find_batch(conn, caller.workspace_id, batch_id)])[0]


def _check_webhook(services: Services, webhook: WebhookOrder) -> None:
    # Address checks load with their first use: most batches have no webhook.
    from batchrouter.server.delivery.addresses import check_webhook_url  # noqa: PLC0415

    try:
        check_webhook_url(webhook.url, allow_loopback_http=services.is_loopback)
    except ValueError as error:
        raise refusal("invalid_request", f"webhook.url: {error}") from None


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if len(key) not in _KEY_LENGTHS:
        raise refusal("invalid_request", "Idempotency-Key: must have 8 to 128 characters")
    return key


def _list_query(request: Request) -> ListQuery:
    query = request.query_params
    known = {"limit", "after", "state", "updated_after", "view"}
    unknown = sorted(set(query) - known)
    if unknown:
        raise refusal("invalid_request", f"{unknown[0]}: unknown parameter")
    limit = query.get("limit", "20")
    if not (_LIMIT.fullmatch(limit) and 1 <= int(limit) <= _MAX_LIMIT):
        raise refusal("invalid_request", f"limit: must be a whole number from 1 to {_MAX_LIMIT}")
    states = query.getlist("state")
    strangers = sorted(set(states) - STATES)
    if strangers:
        there_is = ", ".join(sorted(STATES))
        raise refusal("invalid_request", f"state: {strangers[0]!r} is none of {there_is}")
    view = query.get("view", "full")
    if view not in {"full", "summary"}:
        raise refusal("invalid_request", "view: must be summary, or be left out")
    return ListQuery(
        limit=int(limit),
        after=query.get("after"),
        states=states,
        updated_after_us=_moment_us(query.get("updated_after")),
        is_summary=view == "summary",
    )


def _moment_us(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return us_from_datetime(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        pass
    raise refusal("invalid_request", "updated_after: must be an RFC 3339 time with its zone")
