"""Every way in which the router says no, with its HTTP status (contract section 2)."""

from typing import Any

from batchrouter.errors import APIError, api_error

__all__ = ["STATUS", "refusal"]

STATUS = {
    "invalid_request": 400,
    "invalid_manifest": 400,
    "no_eligible_lane": 400,
    "unauthorized": 401,
    "insufficient_credits": 402,
    "insufficient_scope": 403,
    "origin_not_allowed": 403,
    "url_signature_invalid": 403,
    "url_expired": 403,
    "not_found": 404,
    "quote_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "model_not_found": 404,
    "workflow_not_found": 404,
    "method_not_allowed": 405,
    "quote_lock_expired": 409,
    "quote_lock_already_accepted": 409,
    "quote_lock_mismatch": 409,
    "quote_lock_items_exceeded": 409,
    "quote_lock_usage_exceeded": 409,
    "artifact_not_ready": 409,
    "batch_not_cancellable": 409,
    "idempotency_key_reused": 409,
    "artifact_expired": 410,
    "request_too_large": 413,
    "unsupported_content_encoding": 415,
    "range_not_satisfiable": 416,
    "host_not_allowed": 421,
    "rate_limited": 429,
    "internal_error": 500,
    "provider_capacity_unavailable": 503,
    "router_busy": 503,
    "storage_full": 507,
}


def refusal(
    code: str, message: str, *, retry_after_s: float | None = None, **details: Any
) -> APIError:
    """Build the error to raise; the HTTP layer turns it into the contract's error object.

    Args:
        code: One of `STATUS`.
        message: For a person: what is wrong and what to do.
        retry_after_s: Seconds, sent as `Retry-After`.
        **details: The error's `details` object.

    Example:
        >>> refusal("quote_not_found", "no such quote").status
        404
    """
    return api_error(
        message, status=STATUS[code], code=code, details=details, retry_after_s=retry_after_s
    )
