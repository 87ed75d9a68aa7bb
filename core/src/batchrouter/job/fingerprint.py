"""What decides a purchase, as hashes that a later run compares with its own."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from batchrouter.job.source import Query

if TYPE_CHECKING:
    from batchrouter.job.job import Job

VERSION = 1
"""Raised when what is hashed changes; golden files pin the hashes of each version."""


def fingerprint_of(job: "Job") -> dict[str, str]:
    """Hash source, key, request and route, each without its defaults; see `Job.fingerprint`."""
    source = job.resolved_source
    if isinstance(source, Query):
        source_hash = _hash({"sql": source.sql, "connection": source.connection})
    else:
        source_hash = _hash(source) if isinstance(source, str) else "in-memory"
    request = job.request.model_dump(exclude_defaults=True, exclude={"output"})
    request["kind"] = job.request.kind
    if schema := job.request.output_schema():
        request["output"] = schema
    if job.on_null != "error":
        request["on_null"] = job.on_null
    return {
        "source": source_hash,
        "key": _hash(job.key_columns),
        "request": _hash(request),
        "route": _hash(job.route.model_dump(exclude_defaults=True)),
    }


def _hash(value: Any) -> str:
    canonical = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"{VERSION}:{hashlib.sha256(canonical.encode()).hexdigest()}"
