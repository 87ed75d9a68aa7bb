"""The fault matrix: what networks and servers do wrong, on every endpoint that a run calls.

Each fault hits the first request of its endpoint, and the next one too. Each cell: one batch at
the router, the account to the micro-dollar, every row landed, within a bounded time. For webhooks:
the event is in the inbox once, whatever happened to its delivery.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.errors import RunCancelledError
from batchrouter.testing import FaultProxy, RunningRouter, running_router
from crash.desk import CONFIG, wait_until
from crash.scenario import ROWS
from crash.scene import CONFIG_FILE, Scene, Store
from crash.story import Teller
from crash.test_bad_deliveries import Receiver

TIMEOUT_S = 2.0
"""The client's patience with one request; what stalls is longer."""

Break = Callable[[FaultProxy, str, str], Any]


def go_away_at(proxy: FaultProxy, method: str, path: str, *, away_s: float = 1.0) -> None:
    """Close the port for a while once the endpoint was asked for the next time."""
    before = proxy.count(method, path)

    def wait_and_go() -> None:
        with suppress(TimeoutError):
            proxy.wait_for(method, path, count=before + 1, timeout_s=30)
            proxy.go_away(away_s)

    proxy.delay(method, path, seconds_s=0.3)
    threading.Thread(target=wait_and_go, daemon=True).start()


def trickle(proxy: FaultProxy, method: str, path: str) -> None:
    """Send it byte by byte: an answer that is given up, an artifact that still comes whole."""
    seconds_s = 0.001 if path.startswith("/artifacts") else 0.05
    proxy.trickle(method, path, seconds_s=seconds_s)


FAULTS: dict[str, Break] = {
    "reply dropped": lambda proxy, *at: proxy.drop_reply(*at, times=2),
    "reply delayed": lambda proxy, *at: proxy.delay(*at, seconds_s=0.5, times=2),
    "reply stalled": lambda proxy, *at: proxy.delay(*at, seconds_s=TIMEOUT_S + 1),
    "reply trickled": trickle,
    "reply truncated": lambda proxy, *at: proxy.truncate(*at, after_bytes=3, times=2),
    "request reset": lambda proxy, *at: proxy.reset(*at, times=2),
    "request cut short": lambda proxy, *at: proxy.reset(*at, after_bytes=20, times=2),
    "request doubled": lambda proxy, *at: proxy.duplicate(*at, times=2),
    "429": lambda proxy, *at: proxy.answer(*at, status=429, times=2),
    "429, Retry-After": lambda proxy, *at: proxy.answer(*at, status=429, retry_after_s=1),
    "500": lambda proxy, *at: proxy.answer(*at, status=500, times=2),
    "502": lambda proxy, *at: proxy.answer(*at, status=502, body=b"<html>bad gateway", times=2),
    "503": lambda proxy, *at: proxy.answer(*at, status=503, retry_after_s=0, times=2),
    "gone for a while": go_away_at,
}

ENDPOINTS = {
    "quote": ("POST", "/v1/quotes/model"),
    "workflow quote": ("POST", "/v1/quotes/workflow"),
    "upload": ("POST", "/v1/batches/input-manifests"),
    "submit": ("POST", "/v1/batches"),
    "list": ("GET", "/v1/batches"),
    "retrieve": ("GET", "/v1/batches/batch_????????????????????????????????"),
    "artifact URL": ("GET", "/v1/batches/*/artifact-url"),
    "artifact": ("GET", "/artifacts/*"),
    "cancel": ("POST", "/v1/batches/*/cancel"),
}

WORKFLOW = {
    "slug": "label",
    "version": 1,
    "fields": [{"name": "text"}],
    "user": "Label this: {text}",
    "output_schema": {
        "type": "object",
        "additionalProperties": False,
        "required": ["intent"],
        "properties": {"intent": {"type": "string", "enum": ["card", "transfer", "refund"]}},
    },
    "models": ["quick"],
}
CONFIG_OF_FAULTS = {**CONFIG, "workflows": [WORKFLOW]}
BY_WORKFLOW = {
    "request": {
        "kind": "workflow",
        "input": {"text": "{text}"},
        "output": {"intent": {"type": "string"}},
    },
    "route": {"workflow": "label@v1"},
}

MINUTE_S = 60.0

SHORT = [
    ("submit", "reply dropped"),
    ("submit", "request doubled"),
    ("submit", "gone for a while"),
    ("artifact", "reply truncated"),
    ("cancel", "503"),
]


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy() as listening:
        yield listening


@pytest.fixture(scope="module")
def router(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG_OF_FAULTS))
    with running_router(
        folder / "router", config=CONFIG_OF_FAULTS, public_url=proxy.base_url
    ) as running:
        proxy.upstream = running.base_url
        yield running


def play(endpoint: str, fault: str, proxy: FaultProxy, router: RunningRouter, root: Path) -> None:
    model = "slow" if endpoint == "cancel" else "quick"
    changes = BY_WORKFLOW if endpoint == "workflow quote" else {}
    store = Store("local", str(root))
    scene = Scene(root, router, store, model=model, changes=dict(changes), base_url=proxy.base_url)
    teller = Teller(json.loads(scene.text()))
    teller.settings = teller.settings.replace(timeout_s=TIMEOUT_S, max_attempts=8, retry_wait_s=0.2)
    at = ENDPOINTS[endpoint]
    seen_before = proxy.count(*at)
    FAULTS[fault](proxy, *at)
    try:
        rows = told(teller, is_cancelled=endpoint == "cancel")
    finally:
        proxy.forget_rules()
        proxy.come_back()
    assert proxy.count(*at) > seen_before, "the fault hit nothing"
    wait_until(lambda: all(batch["completed_at"] for batch in scene.ledger().batches))
    ledger = scene.ledger()
    assert len(ledger.batches) == 1
    ledger.check()
    table = scene.table()
    assert Counter(row["_status"] for row in table or []) == rows
    assert len({row["query_id"] for row in table or []}) == rows.total()


def told(teller: Teller, *, is_cancelled: bool) -> Counter[str]:
    """Run to the end; returns the rows that it says it landed."""
    with teller.open() as run:
        if is_cancelled:
            run.submit()
            with suppress(RunCancelledError):
                run.cancel("not wanted any more")
        try:
            receipt = run.execute(timeout_s=60)
        except RunCancelledError:
            assert is_cancelled
            return Counter()
    assert receipt.row_count == ROWS
    assert is_cancelled or receipt.rows["succeeded"] == ROWS
    return +Counter(receipt.rows)


@pytest.mark.parametrize(("endpoint", "fault"), SHORT)
def test_a_run_ends_as_if_nothing_had_happened(
    endpoint: str, fault: str, proxy: FaultProxy, router: RunningRouter, tmp_path: Path
) -> None:
    play(endpoint, fault, proxy, router, tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_matrix(
    endpoint: str, fault: str, proxy: FaultProxy, router: RunningRouter, tmp_path: Path
) -> None:
    play(endpoint, fault, proxy, router, tmp_path)


@pytest.mark.drill
@pytest.mark.timeout(300)
@pytest.mark.parametrize("endpoint", ["submit", "retrieve", "artifact"])
def test_a_router_that_is_away_for_a_minute(
    endpoint: str, proxy: FaultProxy, router: RunningRouter, tmp_path: Path
) -> None:
    """What is bought, or may be, is waited for; the run comes to its end by itself."""
    scene = Scene(tmp_path, router, Store("local", str(tmp_path)), base_url=proxy.base_url)
    teller = Teller(json.loads(scene.text()))
    teller.settings = teller.settings.replace(timeout_s=TIMEOUT_S)
    go_away_at(proxy, *ENDPOINTS[endpoint], away_s=MINUTE_S)
    began_s = time.monotonic()
    try:
        with teller.open() as run:
            receipt = run.execute(timeout_s=4 * MINUTE_S)
    finally:
        proxy.forget_rules()
        proxy.come_back()

    assert time.monotonic() - began_s > MINUTE_S
    assert receipt.rows["succeeded"] == ROWS
    wait_until(scene.has_settled)
    assert len(scene.ledger().batches) == 1
    scene.ledger().check()


@pytest.mark.drill
def test_every_event_arrives_once_whatever_befell_its_delivery(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    try:
        with (
            FaultProxy(receiver.url.rstrip("/")) as between,
            running_router(tmp_path / "router", config=CONFIG) as router,
            Client(router.settings()) as client,
        ):
            # Last of all the port is closed, before and during its delivery.
            sent = {
                fault: deliver(fault, nth, between, client, receiver)
                for nth, fault in enumerate(FAULTS)
            }
            wait_until(lambda: set(sent.values()) <= set(ended(receiver)), within_s=150)
    finally:
        receiver.stop()

    assert Counter(ended(receiver)) == Counter(sent.values())


def deliver(fault: str, nth: int, between: FaultProxy, client: Client, receiver: Receiver) -> str:
    """Submit a batch whose event comes to a path of its own, where the fault waits."""
    path = f"/hook/{nth}"
    FAULTS[fault](between, "POST", path)
    quote = client.quote_model("quick", estimated_items=1)
    item = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Say hello"}}
    hook = {"url": f"{between.base_url}{path}", "secret": receiver.secret}
    return client.submit_batch({"quote_id": quote.quote_id, "items": [item]}, webhook=hook).id


def ended(receiver: Receiver) -> list[str]:
    """The batches of which the inbox tells that they have ended, once for each such event."""
    from batchrouter.webhooks.inbox import open_inbox

    events, _ = open_inbox(receiver.inbox_url).events_since(None)
    return [event.batch_id for event in events if event.type == "batch.completed"]
