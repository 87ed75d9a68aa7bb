"""What a caller sends to buy a batch, and the hash by which a repeat is recognised."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from batchrouter.server.quoting.questions import Metadata

__all__ = ["Order", "WebhookOrder", "body_sha256"]

Id = Annotated[str, Field(min_length=1, max_length=64)]
Control = Annotated[str, Field(max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class WebhookOrder(_Body):
    """Where to tell of the batch, and the secret that signs it."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    secret: Annotated[str, Field(min_length=8, max_length=256, repr=False)]


class Order(_Body):
    """The body of `POST /v1/batches` (contract section 5).

    Attributes:
        quote_id: The locked price.
        items: The manifest's lines; or
        input_file_id: an uploaded manifest.
        metadata: 16 pairs of strings, given back with the batch.
        webhook: Where to tell of it.
        routing_mode: As in the quote; like the four below it, compared only when sent.
    """

    quote_id: Id
    # Fail fast: millions of wrong entries would each be described before the first is told.
    items: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)] | None = None
    input_file_id: Id | None = None
    metadata: Metadata = {}
    webhook: WebhookOrder | None = None
    routing_mode: Control | None = None
    privacy_tier: Control | None = None
    allowed_regions: Annotated[list[Control], Field(min_length=1, max_length=64)] | None = None
    sla_tier: Control | None = None
    task: Control | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.items is None) == (self.input_file_id is None):
            raise ValueError("give exactly one of items and input_file_id")
        return self

    def differences(self, quoted: Mapping[str, Any]) -> list[str]:
        """Name the fields that repeat the quote and differ from it; regions count as a set."""
        different: list[str] = []
        for field in ("routing_mode", "privacy_tier", "sla_tier", "task"):
            sent = getattr(self, field)
            if sent is not None and sent != quoted[field]:
                different.append(field)
        regions = self.allowed_regions
        if regions is not None and set(regions) != set(quoted["allowed_regions"]):
            different.append("allowed_regions")
        return different


def body_sha256(body: Mapping[str, Any]) -> str:
    """Hash a body as canonical JSON without its webhook, whose secret may be renewed.

    Example:
        >>> body_sha256({"a": 1, "b": 2}) == body_sha256({"b": 2, "a": 1, "webhook": {}})
        True
    """
    kept = {name: value for name, value in body.items() if name != "webhook"}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
