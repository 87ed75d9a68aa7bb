"""What a route needs of the running router, and who is asking."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from batchrouter.server.http.rate_limit import RateLimit
from batchrouter.server.log_fields import note_in_log
from batchrouter.server.refusals import refusal
from batchrouter.server.services import Services
from batchrouter.server.storage.keys import Caller, find_caller

__all__ = ["Given", "requires", "services_of"]

Scope = Literal["quote", "submit", "read", "cancel", "metrics"]


def services_of(request: Request) -> Services:
    """The parts of the router that answers this request."""
    return cast("Services", request.app.state.services)


Given = Annotated[Services, Depends(services_of)]


def requires(scope: Scope) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    """Make a dependency that admits callers whose key has a scope, before anything is read.

    Raises (from the dependency):
        APIError: `unauthorized`, `insufficient_scope`, `rate_limited`.
    """

    async def admit(request: Request) -> Caller:
        services = services_of(request)
        key = _bearer(request)
        caller = await run_in_threadpool(_look_up, services, key)
        if caller is None:
            raise refusal("unauthorized", "the API key is unknown or revoked")
        note_in_log(key_id=caller.key_id)
        if scope not in caller.scopes:
            raise refusal(
                "insufficient_scope",
                f"the API key lacks the scope {scope}",
                required=scope,
                granted=sorted(caller.scopes),
            )
        limit = cast("RateLimit", request.app.state.rate_limit)
        per_minute = caller.requests_per_minute
        if per_minute is None:
            per_minute = services.config.limits.requests_per_minute
        if per_minute:
            await run_in_threadpool(limit.admit, caller.key_id, per_minute)
        return caller

    return admit


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise refusal("unauthorized", "send the API key as Authorization: Bearer <key>")
    return key.strip()


def _look_up(services: Services, key: str) -> Caller | None:
    with services.database.reading() as conn:
        return find_caller(conn, key)
