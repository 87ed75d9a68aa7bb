"""Providers' errors, sorted into the contract's item error codes; their own words are kept."""

from batchrouter.server.lanes.lane import LaneAnswer

__all__ = ["trouble"]

_MAX_MESSAGE_CHARS = 1_000

_BY_CODE = {
    # Of OpenAI's batches: what was not run when the batch ended.
    "batch_expired": ("provider_timeout", True),
    "batch_cancelled": ("provider_timeout", True),
    "context_length_exceeded": ("context_length_exceeded", False),
    "string_above_max_length": ("context_length_exceeded", False),
    "content_policy_violation": ("content_policy", False),
    "content_filter": ("content_policy", False),
    "rate_limit_exceeded": ("rate_limited", True),
    # Of Anthropic: error types.
    "rate_limit_error": ("rate_limited", True),
    "overloaded_error": ("provider_error", True),
    "timeout_error": ("provider_timeout", True),
    "api_error": ("provider_error", True),
    "invalid_request_error": ("invalid_input", False),
}
_BY_WORDS = (
    ("maximum context length", "context_length_exceeded"),
    ("prompt is too long", "context_length_exceeded"),
    ("too large for model", "context_length_exceeded"),
    ("content management policy", "content_policy"),
    ("content policy", "content_policy"),
    ("safety system", "content_policy"),
)
_TIMEOUTS = frozenset({408, 504, 524})
_REQUEST_IS_WRONG = frozenset({400, 404, 405, 413, 415, 422})
_TOO_MANY = 429


def trouble(message: str, *, code: str = "", status: int | None = None) -> LaneAnswer:
    """Sort a provider's error about one item.

    Args:
        message: The provider's words.
        code: Its error code or type.
        status: The HTTP status, where there is one.

    Example:
        >>> trouble("This model's maximum context length is 8192 tokens", status=400).error_code
        'context_length_exceeded'
        >>> trouble("slow down", status=429).is_retryable
        True
    """
    told = message[:_MAX_MESSAGE_CHARS] or code or f"the provider answered {status}"
    lower = message.lower()
    for words, sorted_as in _BY_WORDS:
        if words in lower:
            return LaneAnswer(None, error_code=sorted_as, error_message=told)
    name, is_retryable = _BY_CODE.get(code) or _by_status(status)
    return LaneAnswer(None, error_code=name, error_message=told, is_retryable=is_retryable)


def _by_status(status: int | None) -> tuple[str, bool]:
    if status == _TOO_MANY:
        return "rate_limited", True
    if status in _TIMEOUTS:
        return "provider_timeout", True
    if status in _REQUEST_IS_WRONG:
        return "invalid_input", False
    return "provider_error", True
