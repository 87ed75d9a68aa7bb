"""Artifact URLs: who holds one may read one object until it expires, and nothing else.

The signature is HMAC-SHA256 over method class, path, expiry and the signing key's id; GET and
HEAD are one class, so that a client may look before it reads.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Row

from batchrouter.server.refusals import refusal
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import now_us, rfc3339

__all__ = ["UrlSigner", "artifact_link", "partial_link", "require_artifact"]

_METHOD_CLASS = "read"


@dataclass(frozen=True, slots=True)
class UrlSigner:
    """Signs and checks paths.

    Example:
        >>> signer = UrlSigner(b"k" * 32)
        >>> query = signer.sign("/artifacts/b.jsonl", expires_s=2_000_000_000)
        >>> signer.check("/artifacts/b.jsonl", query, now_s=1_900_000_000)
    """

    key: bytes

    @property
    def key_id(self) -> str:
        """Names the key without telling it, so that it can be changed one day."""
        return hashlib.sha256(b"artifact-url-key-id:" + self.key).hexdigest()[:16]

    def sign(self, path: str, *, expires_s: int) -> dict[str, str]:
        """Make the query parameters that open `path` until `expires_s` (Unix seconds)."""
        expires = str(expires_s)
        return {"expires": expires, "key": self.key_id, "signature": self._mac(path, expires)}

    def check(self, path: str, query: dict[str, str], *, now_s: int) -> None:
        """Check a request's query parameters.

        Raises:
            APIError: `url_signature_invalid`, or `url_expired`.
        """
        expires = query.get("expires", "")
        expected = self._mac(path, expires).encode()
        # Bytes: compare_digest refuses text beyond ASCII, which a caller may send.
        is_genuine = hmac.compare_digest(expected, query.get("signature", "").encode())
        if not is_genuine or not hmac.compare_digest(
            self.key_id.encode(), query.get("key", "").encode()
        ):
            raise refusal("url_signature_invalid", "the URL is not one that this router signed")
        if now_s >= int(expires):
            raise refusal("url_expired", "the URL has expired: ask for a fresh one")

    def _mac(self, path: str, expires: str) -> str:
        signed = f"{_METHOD_CLASS}\n{path}\n{expires}\n{self.key_id}"
        return hmac.new(self.key, signed.encode(), hashlib.sha256).hexdigest()


def signer_of(services: Services) -> UrlSigner:
    """Take the signing key from the vault."""
    return UrlSigner(services.vault.derive("artifact-urls"))


def require_artifact(batch: Row[Any]) -> None:
    """See that a batch's artifact can be read.

    Raises:
        APIError: `artifact_not_ready` unless it succeeded, `artifact_expired` when its
            retention has ended.
    """
    if batch.state != "succeeded":
        is_final = batch.completed_at is not None
        message = (
            f"the batch ended {batch.state}: it has no complete artifact"
            if is_final
            else f"the batch is {batch.state}: wait until it has succeeded"
        )
        raise refusal("artifact_not_ready", message, state=batch.state, final=is_final)
    _require_kept(batch)


def artifact_link(services: Services, batch: Row[Any]) -> dict[str, Any]:
    """Write the contract's artifact URL object, with a fresh URL."""
    expires_s = now_us() // 1_000_000 + services.config.limits.signed_url_s
    return {
        "batch_id": batch.id,
        "file_id": f"file_{batch.id.removeprefix('batch_')}",
        "url": _url(services, batch, expires_s),
        "expires_at": rfc3339(expires_s * 1_000_000),
        "bytes": batch.artifact_bytes,
        "sha256": batch.artifact_sha256,
        "format": "jsonl",
    }


def _url(services: Services, batch: Row[Any], expires_s: int) -> str:
    if services.config.artifact_urls == "store":
        for_s = services.config.limits.signed_url_s
        signed = services.objects.signed_url(batch.artifact_key, for_s=for_s)
        if signed is not None:
            return signed
    path = f"/artifacts/{batch.id}.jsonl"
    query = signer_of(services).sign(path, expires_s=expires_s)
    return f"{services.public_url.rstrip('/')}{path}?{urlencode(query)}"


def partial_link(services: Services, batch: Row[Any]) -> dict[str, Any] | None:
    """Link what a cancelled or failed batch completed; None when there is nothing (left)."""
    if batch.state not in {"cancelled", "failed"} or not batch.completed or not batch.artifact_key:
        return None
    if now_us() >= batch.artifact_expires_at:
        return None
    return artifact_link(services, batch)


def _require_kept(batch: Row[Any]) -> None:
    if not batch.artifact_key or now_us() >= batch.artifact_expires_at:
        raise refusal("artifact_expired", "the artifact was kept as long as promised, and is gone")


def find_readable(batch: Row[Any] | None) -> Row[Any]:
    """See that a signed URL still leads to an object.

    Raises:
        APIError: `artifact_expired`.
    """
    if batch is None:
        raise refusal("artifact_expired", "the batch is gone, and its artifact with it")
    _require_kept(batch)
    return batch
