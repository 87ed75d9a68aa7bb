"""The only module that imports httpx: it does the steps of a flow on real sockets.

Every wait is bounded: to connect, to write, to read, to get a connection, and a reply that
has begun must be whole within the same time again. No redirect is followed here. The API key
goes to the API's own requests and nowhere else; a signed URL is kept out of httpx's log.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx

from batchrouter import tracing
from batchrouter._version import __version__
from batchrouter.api.offload import in_thread
from batchrouter.api.settings import Settings
from batchrouter.api.steps import Fetch, FetchReply, Reply, Send
from batchrouter.api.uploads import CHUNK_BYTES
from batchrouter.errors import ConfigError, ProtocolError, TransportError

MAX_REPLY_BYTES = 64 << 20
"""A page of a thousand batches is a few MB; more than this is no answer of this API."""

_FIRST_REFUSAL = 400
_KEEPALIVE_S = 3.0
"""Below the 5 s after which uvicorn and many proxies close an idle connection: a request that
meets the close would fail although nothing is wrong."""

# Loopback is never reached through a proxy of the environment.
_DIRECT: Mapping[str, None] = {
    "all://localhost": None,
    "all://127.0.0.1": None,
    "all://[::1]": None,
}

_url_is_secret: ContextVar[bool] = ContextVar("batchrouter_url_is_secret", default=False)


def _keep_secret_urls(_record: logging.LogRecord) -> bool:
    return not _url_is_secret.get()


# httpx logs every URL at INFO, and orchestrators show that: a signed one must not be there.
logging.getLogger("httpx").addFilter(_keep_secret_urls)


class _Wire:
    """What both transports know: the settings, and how httpx is to be asked."""

    def __init__(self, settings: Settings, *, needs_key: bool = True) -> None:
        if settings.api_key is None and needs_key:
            raise ConfigError("no API key: set BATCHROUTER_API_KEY, or give api_key")
        self._settings = settings
        self._host = urlsplit(settings.base_url).netloc
        key = settings.api_key
        self._authorization = f"Bearer {key.get_secret_value()}" if key is not None else None

    def _client_options(self) -> dict[str, Any]:
        return {
            "timeout": self._settings.timeout_s,
            "follow_redirects": False,
            "mounts": dict(_DIRECT),
            "limits": httpx.Limits(max_connections=100, keepalive_expiry=_KEEPALIVE_S),
            "headers": {"User-Agent": f"batchrouter/{__version__}"},
        }

    def _request_options(self, step: Send) -> dict[str, Any]:
        headers = {
            "Accept": "application/json",
            "X-Request-Id": step.request_id,
            **tracing.trace_headers(),
        }
        if step.with_key and self._authorization is not None:
            headers["Authorization"] = self._authorization
        if step.idempotency_key is not None:
            headers["Idempotency-Key"] = step.idempotency_key
        timeout_s = self._settings.timeout_s
        options: dict[str, Any] = {
            "method": step.method,
            "url": self._settings.base_url + step.path,
            "params": list(step.query),
            "headers": headers,
            "timeout": timeout_s,
        }
        if step.upload is not None:
            headers["Content-Type"] = step.upload.content_type
            headers["Content-Length"] = str(step.upload.content_length)
            options["timeout"] = httpx.Timeout(timeout_s, read=self._settings.upload_timeout_s)
        elif step.fields is not None:
            headers["Content-Type"] = "application/json"
            options["content"] = step.encode()
        return options

    def _fetch_options(self, step: Fetch) -> dict[str, Any]:
        # Byte offsets mean bytes of the file: a compressed answer would have others.
        headers = {"Accept-Encoding": "identity", "X-Request-Id": step.request_id}
        if step.offset:
            headers["Range"] = f"bytes={step.offset}-"
        return {"method": "GET", "url": step.url, "headers": headers}

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_s

    def _check(self, step: Send, size_bytes: int, deadline: float) -> None:
        told = f"(request {step.request_id})"
        if size_bytes > MAX_REPLY_BYTES:
            raise ProtocolError(
                f"{self._host} sent a reply of more than {MAX_REPLY_BYTES} bytes {told}"
            )
        if time.monotonic() > deadline:
            raise TransportError(
                f"{self._host} has begun to answer and took more than "
                f"{self._settings.timeout_s:g} s to end: try again, or raise timeout_s {told}"
            )

    def _send_span(self, step: Send) -> AbstractContextManager[None]:
        template = step.template or step.path
        attributes: dict[str, str | int] = {
            **_server(self._settings.base_url),
            "http.request.method": step.method,
            "url.full": self._settings.base_url + step.path,
            "url.template": template,
            "batchrouter.request.id": step.request_id,
        }
        if step.resend_count:
            attributes["http.request.resend_count"] = step.resend_count
        return tracing.span(f"{step.method} {template}", "client", attributes=attributes)

    def _fetch_span(self, step: Fetch) -> AbstractContextManager[None]:
        # No URL: it is a secret for as long as it is of use.
        return tracing.span(
            "GET",
            "client",
            attributes={
                **_server(step.url),
                "http.request.method": "GET",
                "batchrouter.request.id": step.request_id,
            },
        )

    @contextmanager
    def _told_errors(self, host: str, request_id: str) -> Generator[None, None, None]:
        try:
            yield
        except httpx.RequestError as error:
            # Not chained: httpx's error holds the request, and that holds the key.
            raise TransportError(f"{_explain(error, host)} (request {request_id})") from None
        except httpx.InvalidURL as error:
            raise ConfigError(f"{host}: not a URL that can be asked: {error}") from None


class SyncTransport(_Wire):
    """Does steps with blocking calls; safe to share between threads.

    Args:
        settings: Where the API is, and how long to wait.
        needs_key: False where only signed URLs are fetched.
    """

    def __init__(self, settings: Settings, *, needs_key: bool = True) -> None:
        super().__init__(settings, needs_key=needs_key)
        self._http = httpx.Client(**self._client_options())

    def send(self, step: Send) -> Reply:
        """Send a request and take in the whole reply."""
        with self._send_span(step), self._told_errors(self._host, step.request_id):
            options = self._request_options(step)
            if step.upload is not None:
                options["content"] = step.upload.body()
            with self._http.stream(**options) as response:
                _note_status(response)
                deadline, body = self._deadline(), bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    self._check(step, len(body), deadline)
                return Reply(response.status_code, _headers(response), bytes(body))

    def fetch(self, step: Fetch) -> FetchReply:
        """Stream a signed URL into its sink."""
        with (
            _secret_url(),
            self._fetch_span(step),
            self._told_errors(_host(step.url), step.request_id),
            self._http.stream(**self._fetch_options(step)) as response,
        ):
            _note_status(response)
            head = response.status_code, _headers(response)
            if not step.sink.begin(*head):
                return FetchReply(*head)
            try:
                for chunk in _gathered(response.iter_raw()):
                    step.sink.write(chunk)
                    step.sink.report()
            except httpx.RequestError as error:
                return FetchReply(*head, broken=_explain(error, _host(step.url)))
            return FetchReply(*head)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class AwaitedTransport(_Wire):
    """Does the same steps inside an event loop; disks are read and written in threads."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._http = httpx.AsyncClient(**self._client_options())

    async def send(self, step: Send) -> Reply:
        """Send a request and take in the whole reply."""
        with self._send_span(step), self._told_errors(self._host, step.request_id):
            options = self._request_options(step)
            if step.upload is not None:
                options["content"] = step.upload.abody()
            async with self._http.stream(**options) as response:
                _note_status(response)
                deadline, body = self._deadline(), bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    self._check(step, len(body), deadline)
                return Reply(response.status_code, _headers(response), bytes(body))

    async def fetch(self, step: Fetch) -> FetchReply:
        """Stream a signed URL into its sink."""
        with (
            _secret_url(),
            self._fetch_span(step),
            self._told_errors(_host(step.url), step.request_id),
        ):
            async with self._http.stream(**self._fetch_options(step)) as response:
                _note_status(response)
                head = response.status_code, _headers(response)
                if not step.sink.begin(*head):
                    return FetchReply(*head)
                try:
                    async for chunk in _agathered(response.aiter_raw()):
                        await in_thread(lambda chunk=chunk: step.sink.write(chunk))
                        step.sink.report()
                except httpx.RequestError as error:
                    return FetchReply(*head, broken=_explain(error, _host(step.url)))
                return FetchReply(*head)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces; what came before a break is handed on, so that nothing comes twice."""
    held = bytearray()
    try:
        for piece in pieces:
            held += piece
            if len(held) >= CHUNK_BYTES:
                yield bytes(held)
                held.clear()
    except httpx.RequestError:
        if held:
            yield bytes(held)
        raise
    if held:
        yield bytes(held)


async def _agathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    try:
        async for piece in pieces:
            held += piece
            if len(held) >= CHUNK_BYTES:
                yield bytes(held)
                held.clear()
    except httpx.RequestError:
        if held:
            yield bytes(held)
        raise
    if held:
        yield bytes(held)


@contextmanager
def _secret_url() -> Generator[None, None, None]:
    token = _url_is_secret.set(True)
    try:
        yield
    finally:
        _url_is_secret.reset(token)


def _server(url: str) -> dict[str, str | int]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return {"server.address": parts.hostname or "", "server.port": port}


def _note_status(response: httpx.Response) -> None:
    status = response.status_code
    failed_as = str(status) if status >= _FIRST_REFUSAL else None
    tracing.note({"http.response.status_code": status}, failed_as=failed_as)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


_REASONS: tuple[tuple[type[httpx.RequestError], str], ...] = (
    (httpx.ConnectTimeout, "accepts no connection in time: check base_url and firewalls"),
    (httpx.ConnectError, "refuses connections: check base_url, and that it is running"),
    (httpx.ProxyError, "cannot be reached through the proxy: check HTTPS_PROXY"),
    (httpx.ReadTimeout, "did not answer in time: the request may have arrived"),
    (httpx.WriteTimeout, "stopped taking in the request: it may have arrived in part"),
    (httpx.PoolTimeout, "has no free connection: too many calls at once in this process"),
    (httpx.DecodingError, "sent a reply whose compression is broken"),
    (httpx.RequestError, "broke the connection: the request may have arrived"),
)


def _explain(error: httpx.RequestError, host: str) -> str:
    """Say what happened at which host, and what to do; never what was sent."""
    reason = next(text for kind, text in _REASONS if isinstance(error, kind))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = "shows a certificate that is not trusted: set SSL_CERT_FILE if it is your own"
        elif isinstance(cause, socket.gaierror):
            reason = "cannot be resolved: check base_url and the name server"
        cause = cause.__cause__ or cause.__context__
    return f"{host} {reason} ({type(error).__name__}{f': {error}' if str(error) else ''})"
