"""An artifact on its way down: resumed where it stopped, kept only when it is the promised one.

A signed URL expires, a connection breaks, a process dies: the next attempt asks for the rest
with ``Range``, if need be at a fresh URL, and size and sha256 settle in the end whether the
pieces are one file. A path is filled beside itself, in ``<name>.part``, which a later process
goes on with; it appears under its own name only when it is whole.
"""

import re
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from batchrouter.api import flows
from batchrouter.api.calls import Caller
from batchrouter.api.models import ArtifactLink
from batchrouter.api.steps import Fetch, FetchReply, Flow, Work, read_retry_after
from batchrouter.api.targets import Target
from batchrouter.errors import (
    ArtifactError,
    BatchFailedError,
    BatchrouterError,
    ProtocolError,
    TransportError,
)

_MAX_REDIRECTS = 3
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much renews the count of attempts; less could go on for ever."""

_ARRIVED = frozenset({200, 206})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RANGE_NOT_SATISFIABLE = 416
_TOO_MANY_REQUESTS = 429
_FIRST_REFUSAL = 400
_FIRST_SERVER_ERROR = 500
_UNSATISFIED_RANGE = re.compile(r"bytes \*/(\d+)")


def download_artifact(
    caller: Caller, batch_id: str, target: Target, *, partial: bool = False
) -> Flow[ArtifactLink]:
    """Bring an artifact down, whole and verified, in bounded attempts."""

    def sign() -> Flow[ArtifactLink]:
        return _ask_for_link(caller, batch_id, partial=partial)

    link = yield from sign()
    return (yield from _bring_down(caller, link, target, sign))


def download_signed(caller: Caller, link: ArtifactLink, target: Target) -> Flow[ArtifactLink]:
    """Bring down what a link leads to, in a process that holds no key to ask for another.

    Raises:
        TransportError: The URL has expired, or the store stays silent.
        ArtifactError: Size or sha256 are not the promised ones.
    """

    def sign() -> Flow[ArtifactLink]:
        raise TransportError(f"{_host(link.url)} refuses the signed URL of {link.batch_id}")

    return (yield from _bring_down(caller, link, target, sign))


def _bring_down(
    caller: Caller, link: ArtifactLink, target: Target, sign: Callable[[], Flow[ArtifactLink]]
) -> Flow[ArtifactLink]:
    try:
        yield Work(target.open)
        # Only what an earlier process left may be of another file: then, and only then,
        # beginning anew can help.
        may_restart = target.received > 0
        while True:
            try:
                link = yield from _fill(caller, target, link, sign)
                _check_sha256(target, link)
                yield Work(target.publish)
            except ArtifactError:
                if not may_restart:
                    yield Work(target.discard)
                    raise
                may_restart = False
                yield Work(target.restart)
            else:
                return link
    finally:
        target.close()


def _ask_for_link(caller: Caller, batch_id: str, *, partial: bool) -> Flow[ArtifactLink]:
    if partial:
        batch = yield from flows.retrieve_batch(caller, batch_id, include_partial_output=True)
        if batch.partial_output is None:
            kind = BatchFailedError if batch.is_terminal else ArtifactError
            raise kind(f"{batch_id} is {batch.state} and offers no partial output")
        found = batch.partial_output
        link = found.model_copy(update={"url": urljoin(caller.base_url, found.url)})
    else:
        link = yield from flows.artifact_url(caller, batch_id)
    parts = urlsplit(link.url)
    # In clear only where the API itself is spoken to in clear, which the settings guard.
    schemes = {"https", urlsplit(caller.base_url).scheme}
    if not parts.hostname or parts.scheme not in schemes:
        raise ProtocolError(f"{caller.host} gave an artifact URL that is not https: refused")
    return link


def _fill(
    caller: Caller, target: Target, link: ArtifactLink, sign: Callable[[], Flow[ArtifactLink]]
) -> Flow[ArtifactLink]:
    """Fetch until everything that was promised is there; return the newest link."""
    patience = caller.patience()
    _check_promise(target, link)
    while link.bytes is None or target.received < link.bytes:
        before = target.received
        try:
            reply = yield from _fetch(link.url, target)
            problem = _judge(reply, target, link)
        except TransportError as error:
            reply, problem = FetchReply(0), error
        if problem is None:
            return link
        if target.received - before >= _PROGRESS_BYTES:
            patience.renew()
        yield patience.wait_after(problem, asked_s=read_retry_after(reply.headers))
        if _is_refused(reply):
            # The API knows whether the artifact is still there, and signs anew.
            link = yield from sign()
            _check_promise(target, link)
    return link


def _check_promise(target: Target, link: ArtifactLink) -> None:
    target.promised = link.bytes
    if link.bytes is not None and target.received > link.bytes:
        raise ArtifactError(f"more has come than the promised {link.bytes} bytes")


def _fetch(url: str, target: Target) -> Flow[FetchReply]:
    """Fetch the rest, following redirects that stay where they are."""
    for _ in range(_MAX_REDIRECTS + 1):
        reply: FetchReply = yield Fetch(url, target.received, target)
        if reply.status not in _REDIRECTS:
            return reply
        onward = urljoin(url, reply.headers.get("location", ""))
        if urlsplit(onward)[:2] != urlsplit(url)[:2]:
            raise ProtocolError(
                f"the store at {_host(url)} redirects the artifact to "
                f"{_host(onward)}: refused, only the API may name a host"
            )
        url = onward
    raise ProtocolError(f"the store at {_host(url)} redirects without end")


def _judge(reply: FetchReply, target: Target, link: ArtifactLink) -> BatchrouterError | None:
    """Tell what keeps the download from being whole; None when nothing does."""
    host = _host(link.url)
    if reply.status in _ARRIVED:
        if reply.broken is not None:
            return TransportError(f"{host} broke off after {target.received} bytes: {reply.broken}")
        if link.bytes is not None and target.received < link.bytes:
            return ArtifactError(f"{host} sent {target.received} of {link.bytes} bytes")
        return None
    if reply.status == _RANGE_NOT_SATISFIABLE:
        told = _UNSATISFIED_RANGE.match(reply.headers.get("content-range", ""))
        if link.bytes is None and told and int(told[1]) == target.received:
            return None
        raise ArtifactError(f"{host} has no bytes after {target.received}: another file is there")
    return TransportError(f"{host} answered {reply.status} to the artifact's signed URL")


def _is_refused(reply: FetchReply) -> bool:
    """Tell a 401, 403, 410, or whatever this store says of a signature that has expired."""
    is_refusal = _FIRST_REFUSAL <= reply.status < _FIRST_SERVER_ERROR
    return is_refusal and reply.status != _TOO_MANY_REQUESTS


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _check_sha256(target: Target, link: ArtifactLink) -> None:
    if link.sha256 is not None and target.sha256 != link.sha256.lower():
        raise ArtifactError(
            f"the {target.received} bytes of {link.batch_id} have sha256 {target.sha256}, "
            f"promised was {link.sha256}: nothing was kept"
        )
