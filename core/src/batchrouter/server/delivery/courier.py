"""Posts the outbox's events: signed, once to a checked address, never further than that.

The rules are the contract's (section 7). The proxies of the environment are ignored, redirects
are not followed, and a connection is never used twice: a pool knows connections by address, so
that one that was proven to be host A could carry an event for host B.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx  # noqa: TID251 - the one place in the server that sends

from batchrouter import killpoints, tracing
from batchrouter.server.delivery.addresses import Destination, destination_of
from batchrouter.server.delivery.outbox import DueEvent, Outbox
from batchrouter.server.delivery.schedule import DeliverySchedule
from batchrouter.server.metrics import Metrics
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.vault import Vault
from batchrouter.webhooks.signing import sign

__all__ = ["Courier", "open_http", "post"]

_log = logging.getLogger(__name__)

#: How long a new event waits at most before its first try, in seconds.
LOOK_EVERY_S = 0.1

MAX_AT_ONCE = 32
MAX_ANSWER_BYTES = 64 * 1024
_GONE = 410


class Courier:
    """Sends what is due for as long as it runs, on the event loop that started it.

    Args:
        database: Holds the outbox.
        vault: Decrypts the receivers' secrets.
        allow_loopback_http: True while the router itself listens on loopback.
        schedule: Waits between tries.
        metrics: Where tries are counted.

    Example:
        >>> async def serve(courier: Courier) -> None:
        ...     await courier.start()
        ...     await courier.stop()
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        *,
        allow_loopback_http: bool,
        schedule: DeliverySchedule | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._schedule = schedule or DeliverySchedule()
        self._outbox = Outbox(database, vault, self._schedule)
        self._allow_loopback_http = allow_loopback_http
        self._sending: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look for due events."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop at once; a try in flight counts, and its next one is due as noted before it."""
        tasks = [task for task in (self._loop, *self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    async def _run(self) -> None:
        async with open_http(self._schedule.timeout_s) as client:
            while True:
                room = MAX_AT_ONCE - len(self._sending)
                try:
                    due = await asyncio.to_thread(self._outbox.claim, room) if room else []
                except Exception as error:  # noqa: BLE001 - a full disk must not end all deliveries
                    _log.warning("the outbox cannot be read: %s", type(error).__name__)
                    due = []
                for event in due:
                    task = asyncio.create_task(self._deliver(client, event))
                    self._sending.add(task)
                    task.add_done_callback(self._sending.discard)
                if not due:
                    await asyncio.sleep(LOOK_EVERY_S)

    async def _deliver(self, client: httpx.AsyncClient, event: DueEvent) -> None:
        killpoints.reached("delivery.before_send")
        status: int | None = None
        reason = ""
        try:
            async with asyncio.timeout(self._schedule.timeout_s):
                destination = await asyncio.to_thread(self._resolve, event.url)
                status = await post(client, destination, event)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            reason = type(error).__name__
        except ValueError as refused:
            reason = str(refused)
        killpoints.reached("delivery.after_send")
        note: Callable[[], None]
        if status is not None and httpx.codes.is_success(status):
            note = lambda: self._outbox.delivered(event.id)  # noqa: E731 - one of two notes, both one call
        else:
            _log.info(
                "event %s was not delivered (try %d): %s", event.id, event.attempt, status or reason
            )
            note = lambda: self._outbox.refused(event, for_good=status == _GONE)  # noqa: E731
        self._metrics.count_delivery(_outcome(status))
        await asyncio.to_thread(note)
        killpoints.reached("delivery.after_noted")

    def _resolve(self, url: str) -> Destination:
        return destination_of(url, allow_loopback_http=self._allow_loopback_http)


def open_http(timeout_s: float) -> httpx.AsyncClient:
    """Open what events are sent by: HTTP/1.1, no kept connections; see the module's text.

    `SSL_CERT_FILE` names the authorities that receivers' certificates are verified by, when they
    are not those that every browser knows.
    """
    return httpx.AsyncClient(
        trust_env=False,
        verify=httpx.create_ssl_context(),
        follow_redirects=False,
        timeout=timeout_s,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def _outcome(status: int | None) -> str:
    if status is not None and httpx.codes.is_success(status):
        return "delivered"
    return "gone" if status == _GONE else "failed"


async def post(client: httpx.AsyncClient, destination: Destination, event: DueEvent) -> int:
    """Post the event and return the status; of the answer no more than 64 KB is read."""
    headers = {
        "Host": destination.host_header,
        "Content-Type": "application/json",
        "User-Agent": "batchrouter-webhooks/1",
        "Accept-Encoding": "identity",
    }
    if event.secret is not None:
        headers |= sign(event.secret, event.body, event_id=event.id, timestamp=int(time.time()))
    # The connection goes to the address; TLS asks for, and verifies, the name.
    request = client.build_request(
        "POST",
        destination.connect_url,
        content=event.body,
        headers=headers,
        extensions={"sni_hostname": destination.host},
    )
    with _span(destination, event):
        return await _send(client, request)


def _span(destination: Destination, event: DueEvent) -> AbstractContextManager[None]:
    # No path: receivers are told apart by secrets in it.
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "server.address": destination.host,
        "server.port": destination.port,
        "network.peer.address": destination.address,
        "batchrouter.event.id": event.id,
    }
    if event.attempt > 1:
        attributes["http.request.resend_count"] = event.attempt - 1
    return tracing.span("POST webhook", "client", attributes=attributes)


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> int:
    response = await client.send(request, stream=True)
    status = response.status_code
    failed_as = None if response.is_success else str(status)
    tracing.note({"http.response.status_code": status}, failed_as=failed_as)
    try:
        read_bytes = 0
        async for block in response.aiter_raw():
            read_bytes += len(block)
            if read_bytes >= MAX_ANSWER_BYTES:
                break
    finally:
        await response.aclose()
    return status
