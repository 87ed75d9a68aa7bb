"""A real lane's own options in `router.toml`: where its provider is, its key, its limits.

A key never stands in the file: `api_key_env` names a variable, `api_key_file` a file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

__all__ = ["BATCH_ADAPTERS", "REAL_ADAPTERS", "LaneSettings", "lane_settings", "read_key"]

BATCH_ADAPTERS = ("openai-batch", "anthropic-batch", "mistral-batch")
REAL_ADAPTERS = (*BATCH_ADAPTERS, "openai-http")

_BASE_URLS = {
    "openai-batch": "https://api.openai.com/v1",
    "openai-http": "",
    "anthropic-batch": "https://api.anthropic.com",
    "mistral-batch": "https://api.mistral.ai",
}
_LIMITS: dict[str, dict[str, int]] = {
    # platform docs, read 2026-11: 50,000 requests and 200 MB; 100,000 and 256 MB; 100,000 and
    # 512 MB (the smaller of two figures that Mistral's own pages give).
    "openai-batch": {"max_items": 50_000, "max_bytes": 200_000_000},
    "anthropic-batch": {"max_items": 100_000, "max_bytes": 256_000_000},
    "mistral-batch": {"max_items": 100_000, "max_bytes": 512_000_000},
}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class LaneSettings(BaseModel):
    """The `options` of a real lane.

    Attributes:
        base_url: Where the API's paths start; the provider's own by default.
        api_key_env: The environment variable that holds the key.
        api_key_file: The file that holds it.
        headers: Sent with each request, such as an organisation's id; never a key.
        auth: How the key is sent: `bearer`, or `api-key` (Azure).
        allow_http: Must be set for a base URL without TLS that is not on this machine.
        proxy: An HTTP proxy; those of the environment are not used.
        timeout_s: For an answer to begin, and between two blocks of it.
        poll_s: How often a provider's batch is asked for.
        max_items: Requests of one provider batch.
        max_bytes: Bytes of its input.
        enqueued_tokens: Input tokens of the model that the provider queues at a time.
        completion_window: What the provider is asked for.
        endpoint_prefix: What the paths of batch lines start with; Azure has none.
        cap_parameter: What a chat request's output cap is called there.
        tokens_per_byte: The most input tokens that a byte of a request can cost. 1.0 is certain
            for every tokenizer; less makes quotes smaller, and its risk is the operator's.
        settle_s: How long after a lost reply a create may still show up at the provider.
        has_responses: The server has `/v1/responses`; otherwise such items are asked as chats.
        concurrency: Requests at a time, for servers without a batch API.
        requests_per_minute: A limit, likewise.
        tokens_per_minute: A limit on input and capped output, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    api_key_env: str | None = None
    api_key_file: Path | None = None
    headers: Mapping[str, str] = {}
    auth: Literal["bearer", "api-key", "x-api-key"] = "bearer"
    allow_http: bool = False
    proxy: str | None = None
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    poll_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    max_items: Annotated[int, Field(ge=1)] = 50_000
    max_bytes: Annotated[int, Field(ge=1024)] = 200_000_000
    enqueued_tokens: Annotated[int, Field(ge=1)] | None = None
    completion_window: str = "24h"
    endpoint_prefix: Literal["/v1", ""] = "/v1"
    cap_parameter: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    tokens_per_byte: Annotated[float, Field(gt=0, le=1)] = 1.0
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0
    has_responses: bool = False
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"base_url: {self.base_url!r} is no http or https URL")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url: holds a login or a query; name a key by api_key_env")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not self.allow_http:
            raise ValueError(
                "base_url: has no TLS, and prompts would travel in clear text; set allow_http ="
                " true if you mean it"
            )
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file are both given; name one")
        for name in self.headers:
            if name.lower() in {"authorization", "api-key", "x-api-key", "cookie"}:
                raise ValueError(f"headers: {name} holds a secret; use api_key_env or api_key_file")
        return self


def lane_settings(adapter: str, options: Mapping[str, Any]) -> LaneSettings:
    """Read the options of a real lane, with its provider's own defaults.

    Raises:
        ValueError: Names the option and what is wrong with it.

    Example:
        >>> lane_settings("openai-batch", {"api_key_env": "OPENAI_API_KEY"}).base_url
        'https://api.openai.com/v1'
    """
    given: dict[str, Any] = {"base_url": _BASE_URLS[adapter], **_LIMITS.get(adapter, {})}
    if adapter == "anthropic-batch":
        given["auth"] = "x-api-key"
    if adapter in {"mistral-batch", "openai-http"}:
        given["cap_parameter"] = "max_tokens"
    given |= options
    if not given["base_url"]:
        raise ValueError("options.base_url: is missing; where does the server listen?")
    try:
        return LaneSettings.model_validate(given)
    except ValidationError as error:
        told = "; ".join(_told(one) for one in error.errors(include_url=False, include_input=False))
        raise ValueError(told) from None


def _told(problem: Any) -> str:
    path = ".".join(str(part) for part in ("options", *problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown; there is {', '.join(LaneSettings.model_fields)}"
    return f"{path}: {problem['msg'].removeprefix('Value error, ')}"


def read_key(settings: LaneSettings) -> SecretStr | None:
    """Read the key from where the options say; None when they name none.

    Raises:
        ValueError: The variable is not set, or the file cannot be read or is empty.
    """
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise ValueError(f"options.api_key_env: {settings.api_key_env} is not set")
        return SecretStr(key)
    if settings.api_key_file:
        try:
            key = settings.api_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"options.api_key_file: {error.strerror}") from None
        if not key:
            raise ValueError("options.api_key_file: is empty")
        return SecretStr(key)
    return None
