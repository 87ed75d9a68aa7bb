"""Every error as the contract's error object; what nobody foresaw as an `internal_error`."""

import errno
import math
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from obstore.exceptions import BaseError
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from batchrouter.errors import APIError
from batchrouter.server.refusals import refusal
from batchrouter.server.work.lease import LeaseLostError

__all__ = ["add_error_handlers", "answer_for", "foreseen"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_BUSY_S = 2


def add_error_handlers(app: FastAPI) -> None:
    """Have FastAPI's own errors answered in the contract's form as well."""
    app.add_exception_handler(APIError, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)


def answer_for(error: APIError) -> JSONResponse:
    """Write the error object, and `Retry-After` when there is a wait."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.status == 401:  # noqa: PLR2004 - a 401 must name its scheme (RFC 9110, 11.6.1)
        headers["WWW-Authenticate"] = "Bearer"
    if error.code == "range_not_satisfiable":
        headers["Content-Range"] = f"bytes */{error.details['size_bytes']}"
    body: dict[str, Any] = {"code": error.code, "message": error.args[0], "details": error.details}
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


def foreseen(error: Exception) -> APIError | None:
    """Recognise what disk, store or database refuse, wherever met; None for all else."""
    is_full = (isinstance(error, OSError) and error.errno in _FULL) or (
        isinstance(error, OperationalError) and "disk is full" in str(error.orig)
    )
    if is_full:
        return refusal(
            "storage_full", "the router's disk is full; nothing was kept: try again later"
        )
    if isinstance(error, DataError) and "NUL" in str(error.orig):
        return refusal(
            "invalid_request",
            "a text of the request holds the character NUL, which PostgreSQL cannot keep: take it"
            " out; nothing was kept",
        )
    if isinstance(error, BaseError):
        told = "the router's object store does not answer; nothing was kept: try again"
        return refusal("router_busy", told, retry_after_s=_BUSY_S)
    if isinstance(error, PoolTimeoutError | LeaseLostError) or (
        isinstance(error, OperationalError) and _is_busy(error)
    ):
        told = "the router's database was held by others for too long; nothing was kept: try again"
        return refusal("router_busy", told, retry_after_s=_BUSY_S)
    return None


def _is_busy(error: OperationalError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return "database is locked" in str(error.orig)
    # PostgreSQL's are all of that kind: no turn to write in time, a session or server that ended.
    return True


async def _answer_refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, APIError)
    return answer_for(error)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # noqa: PLR2004
        headers["Allow"] = ", ".join(_methods_at(request))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = {"code": code, "message": str(error.detail), "details": {}}
    return JSONResponse({"error": body}, status_code=error.status_code, headers=headers)


def _methods_at(request: Request) -> list[str]:
    # Starlette names those of the first route with this path; each method is a route of its own.
    return sorted({
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    })


async def _answer_validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"path": ".".join(str(part) for part in item["loc"][1:]), "problem": item["msg"]}
        for item in error.errors()
    ]
    first = problems[0]
    return answer_for(
        refusal("invalid_request", f"{first['path']}: {first['problem']}", problems=problems)
    )
