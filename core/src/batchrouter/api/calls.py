"""One call to the API: what a refusal means, what is sent again, and how long that may take.

Only what is safe to repeat is sent again (`Send.is_repeatable`, or an idempotency key), after
failures that a repeat can cure: no reply, 429, 500, 502, 503, 504. Waits are drawn evenly from
zero to a bound that doubles ("full jitter": clients that failed together do not come back
together), never shorter than ``Retry-After``, and bounded in total.
"""

import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast
from urllib.parse import urlsplit

from batchrouter.api.settings import Settings
from batchrouter.api.steps import Flow, Reply, Send, Sleep
from batchrouter.errors import (
    APIError,
    BadRequestError,
    BatchrouterError,
    ProtocolError,
    TransportError,
    api_error,
)

_LOG = logging.getLogger("batchrouter.api")
_MAX_WAIT_S = 30.0
_FIRST_REDIRECT = 300
_FIRST_REFUSAL = 400
_CURED_BY_REPEATING = frozenset({429, 500, 502, 503, 504})
_ADVICE = {
    401: "check the API key (BATCHROUTER_API_KEY)",
    402: "add credits, or quote less",
    403: "use an API key that has the scope",
    429: "wait, then try again",
}
_UNKNOWN_FIELD = re.compile(
    r"unknown|unexpected|unrecogni[sz]ed|unsupported|additional|extra"
    r"|not (?:be )?(?:allowed|permitted|supported|recogni[sz]ed|accepted|known)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The rules by which one client calls one server."""

    base_url: str
    max_attempts: int = 5
    retry_wait_s: float = 0.5
    max_retry_wait_s: float = 120.0
    draw: Callable[[], float] = random.random  # noqa: S311 - spreads waits, guards nothing

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take the rules from the settings."""
        return cls(
            base_url=settings.base_url,
            max_attempts=settings.max_attempts,
            retry_wait_s=settings.retry_wait_s,
            max_retry_wait_s=settings.max_retry_wait_s,
        )

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.base_url).netloc

    def call(self, request: Send) -> Flow[Reply]:
        """Send a request, again if that is safe and can help, until it is answered with yes.

        Raises:
            TransportError: No reply came, at any attempt.
            APIError: The server said no; the last refusal if there were several.
            ProtocolError: The answer is a redirect.
        """
        patience = self.patience()
        repeatable = request.is_repeatable or request.idempotency_key is not None
        sent = replace(request, resend_count=0)
        while True:
            try:
                reply: Reply = yield sent
                _log_reply(sent, reply)
                if reply.status < _FIRST_REDIRECT:
                    return reply
                raise self._refusal(request, reply)
            except (TransportError, APIError) as error:
                cured = isinstance(error, TransportError) or error.status in _CURED_BY_REPEATING
                if not (repeatable and cured):
                    raise
                asked_s = error.retry_after_s if isinstance(error, APIError) else None
                wait = patience.wait_after(error, asked_s=asked_s)
                _LOG.info("%s: asked again in %.1f s", error, wait.seconds)
                yield wait
                sent = replace(sent, resend_count=sent.resend_count + 1)

    def patience(self) -> "Patience":
        """Return a fresh count of attempts and waits."""
        return Patience(self)

    def call_without_unknown(
        self, request: Send, *, optional: frozenset[str]
    ) -> Flow[tuple[Reply, tuple[str, ...]]]:
        """Call, and ask again without the optional fields that this server does not know.

        Contract section 8. Only a refusal that calls the field unknown counts: a wrong value
        of a known field is the caller's to correct. What was left out is returned and logged,
        so nothing is dropped silently.
        """
        dropped: tuple[str, ...] = ()
        while True:
            try:
                reply = yield from self.call(request)
            except BadRequestError as refusal:
                named = _unknown_fields(refusal, request.field_names, optional)
                if not named:
                    raise
                _LOG.warning("%s does not know %s: asked again without", self.host, named)
                dropped += named
                request = request.without(named)
            else:
                return reply, dropped

    def _refusal(self, request: Send, reply: Reply) -> BatchrouterError:
        if reply.status < _FIRST_REFUSAL:
            where = urlsplit(reply.headers.get("location", "")).netloc or "another path"
            return ProtocolError(
                f"{self.host} redirects {request.method} {request.path} to {where}: the key is "
                "not sent after it; set base_url to where the API is"
                f" (request {reply.request_id or request.request_id})"
            )
        code, message, details = _read_error(reply)
        advice = _ADVICE.get(reply.status)
        told = f"{self.host} refused {request.method} {request.path}: {message}"
        return api_error(
            f"{told}; {advice}" if advice else told,
            status=reply.status,
            code=code,
            details=details,
            request_id=reply.request_id or request.request_id,
            retry_after_s=reply.retry_after_s,
        )


class Patience:
    """How often and how long one operation has already tried; raises when it has had enough."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._attempts = 1
        self._waited_s = 0.0

    def wait_after(self, error: BatchrouterError, *, asked_s: float | None = None) -> Sleep:
        """Return the wait before the next attempt, or raise the error when none is left.

        It is never shorter than `asked_s`, what the server asked for.
        """
        if self._attempts >= self._caller.max_attempts:
            raise error
        bound_s = min(_MAX_WAIT_S, self._caller.retry_wait_s * 2 ** (self._attempts - 1))
        wait_s = max(self._caller.draw() * bound_s, asked_s or 0.0)
        if self._waited_s + wait_s > self._caller.max_retry_wait_s:
            raise error
        self._attempts += 1
        self._waited_s += wait_s
        return Sleep(wait_s)

    def renew(self) -> None:
        """Begin to count anew: something went forward."""
        self._attempts = 1
        self._waited_s = 0.0


def _log_reply(sent: Send, reply: Reply) -> None:
    request_id = reply.request_id or sent.request_id
    _LOG.debug("%s %s: %d (request %s)", sent.method, sent.path, reply.status, request_id)


def _read_error(reply: Reply) -> tuple[str | None, str, dict[str, Any]]:
    """Find code, message and details in a refusal, whatever shape a proxy gave it."""
    try:
        body = reply.json()
    except ProtocolError:
        body = None
    envelope: Mapping[str, Any] = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    error = envelope.get("error", envelope)
    if isinstance(error, str):
        return None, error, {}
    if not isinstance(error, dict):
        error = {}
    fields = cast("dict[str, Any]", error)
    code, details = fields.get("code"), fields.get("details")
    message = fields.get("message") or fields.get("detail")
    return (
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else f"status {reply.status}, without a reason",
        cast("dict[str, Any]", details) if isinstance(details, dict) else {},
    )


def _unknown_fields(
    refusal: BadRequestError, sent: frozenset[str], optional: frozenset[str]
) -> tuple[str, ...]:
    message = str(refusal.args[0])
    if not _UNKNOWN_FIELD.search(message):
        return ()
    # With a `<path>: <problem>` message only the path counts; the problem may name others.
    path = re.search(r": (?:body\.|query\.)?([a-z_]+)(?:\.[\w.\[\]]+)?: ", message)
    named = {path[1]} & sent if path is not None else frozenset[str]()
    if not named:
        named = {name for name in sent if re.search(rf"\b{re.escape(name)}\b", message)}
    return tuple(sorted(named)) if named <= optional else ()
