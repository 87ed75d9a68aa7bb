"""HTTP to a provider: one request, one answer, sorted into what is known of it afterwards.

Nothing is repeated and no redirect is followed: whether a request may be sent again is for the
caller to say. The key stands in a header and in no message.
"""

import json
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx  # noqa: TID251 - the one place that talks to providers

from batchrouter import tracing
from batchrouter.server.lanes.provider import (
    ProviderRefusedError,
    ProviderSilentError,
    ProviderUnreachableError,
)
from batchrouter.server.storage.clock import us_from_datetime

__all__ = ["Wire"]

_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_TOLD_CHARS = 500
#: The request may have been taken all the same (see `ProviderSilentError`).
_SAYS_NOTHING = frozenset({408, 409})


class Wire:
    """An account at a provider.

    Args:
        base_url: Where paths start.
        headers: Sent each time.
        secrets: Texts that are cut out of every message.
        timeout_s: For connecting, and between two blocks of an answer.
        proxy: An HTTP proxy's URL; those of the environment are not used.

    Example:
        >>> Wire("http://127.0.0.1:9/v1", {}, [], timeout_s=1.0).base_url
        'http://127.0.0.1:9/v1'
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        secrets: list[str],
        *,
        timeout_s: float,
        proxy: str | None = None,
        connections: int = 20,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._secrets = [secret for secret in secrets if secret]
        self._client = httpx.Client(
            headers={"User-Agent": "batchrouter/1", **headers},
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
            proxy=proxy,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        self.date_us: int | None = None
        """The `Date` of the last answer."""
        self._date_seen_at = 0.0

    def now_us(self) -> int | None:
        """The provider's time, from the `Date` of the last answer; None before the first."""
        if self.date_us is None:
            return None
        return self.date_us + int((time.monotonic() - self._date_seen_at) * 1_000_000)

    def ask(self, method: str, path: str, **content: Any) -> Any:
        """Send a request and return its JSON.

        Args:
            method: Of HTTP.
            path: Behind the base URL.
            content: `params`, `json`, `content`, `files`, `headers` of httpx.

        Raises:
            ProviderUnreachableError: It was not sent.
            ProviderSilentError: It was sent, and what came of it is not known.
            ProviderRefusedError: The provider said no.
        """
        with self._span(method), self._sent(method, path, **content) as response:
            body = bytearray()
            for block in response.iter_bytes():
                body += block
                if len(body) > _MAX_JSON_BYTES:
                    raise ProviderSilentError(f"the answer to {method} {path} does not end")
        try:
            return json.loads(body) if body else None
        except ValueError:
            raise ProviderSilentError(f"the answer to {method} {path} is no JSON") from None

    def read(self, path: str) -> Generator[bytes]:
        """Read a file of any size in blocks; a cut download raises `ProviderSilentError`."""
        with self._sent("GET", path) as response:
            yield from response.iter_bytes(1024 * 1024)

    def _span(self, method: str) -> AbstractContextManager[None]:
        # No path: it holds the provider's ids.
        parts = urlsplit(self.base_url)
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "server.address": parts.hostname or "",
            "server.port": parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0),
        }
        return tracing.span(f"{method} provider", "client", attributes=attributes)

    @contextmanager
    def _sent(self, method: str, path: str, **content: Any) -> Generator[httpx.Response]:
        what = f"{method} {path.partition('?')[0]}"
        try:
            # Below the base URL always: the key goes nowhere that an answer names.
            url = f"{self.base_url}{path}"
            with self._client.stream(method, url, **content) as response:
                self._note_date(response)
                tracing.note({"http.response.status_code": response.status_code})
                if not response.is_success:
                    self._refuse(what, response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnreachableError(f"{what}: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise ProviderSilentError(f"{what}: {type(error).__name__}") from None

    def _note_date(self, response: httpx.Response) -> None:
        try:
            date = parsedate_to_datetime(response.headers["Date"])
            self.date_us = us_from_datetime(date)
        except (KeyError, ValueError, TypeError):
            return
        self._date_seen_at = time.monotonic()

    def _refuse(self, what: str, response: httpx.Response) -> None:
        status = response.status_code
        body = b""
        for block in response.iter_bytes():
            body += block
            if len(body) > _MAX_JSON_BYTES:
                break
        code, message = _told(body)
        told = self.masked(f"{what}: {status} {message}".strip())
        if status in _SAYS_NOTHING or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise ProviderSilentError(told, status=status)
        raise ProviderRefusedError(
            told, status=status, code=code, retry_after_s=_retry_after_s(response)
        )

    def masked(self, text: str) -> str:
        """Cut the secrets out of a text."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _told(body: bytes) -> tuple[str, str]:
    """Find code and message in a provider's error body."""
    try:
        data = json.loads(body)
    except ValueError:
        return "", body[:_MAX_TOLD_CHARS].decode(errors="replace")
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return "", str(error)[:_MAX_TOLD_CHARS]
    code = error.get("code") or error.get("type") or ""
    message = error.get("message") or error.get("detail") or ""
    return str(code), str(message)[:_MAX_TOLD_CHARS]


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read `Retry-After`, which is seconds or a date."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
