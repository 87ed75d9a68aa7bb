"""Deliveries to a real receiver on a real socket: signed, retried, never further than allowed."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from batchrouter import Client
from batchrouter.server.delivery.courier import Courier
from batchrouter.server.delivery.schedule import DeliverySchedule
from batchrouter.server.storage import tables
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.vault import Vault
from batchrouter.testing import RunningRouter, running_router
from batchrouter.webhooks.signing import mint_secret, verify

SECRET = mint_secret()
QUICK = DeliverySchedule(first_retry_s=0.1, growth=1.0, retries=3, timeout_s=1.0, jitter=0.0)


@dataclass
class Receiver:
    """What came, and what is answered: a status, or a function that answers itself."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    came: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None


@contextmanager
def receiving(*statuses: int, address: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver(statuses=list(statuses))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            receiver.got.append(self.path)
            self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.came.append((self.path, headers, body))
            receiver.ports.add(self.client_address[1])
            if receiver.answer is not None:
                receiver.answer(self)
                return
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    receiver.url = f"http://{address}:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Outgoing:
    """An outbox with one event, and a courier that works until the event has ended."""

    database: Database
    vault: Vault

    def add(self, url: str) -> bytes:
        body = b'{"id":"evt_1","type":"batch.completed","created":%d,"data":{}}' % int(time.time())
        with self.database.writing() as conn:
            now = now_us()
            conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
            row = dict.fromkeys(
                ("workspace_id", "quote_id", "file_id", "state", "request", "metadata"), "x"
            )
            times = dict.fromkeys(("deadline_at", "created_at", "updated_at"), now)
            conn.execute(tables.workspaces.insert().values(id="x", name="x", created_at=now))
            quote = dict.fromkeys(("kind", "request", "answer", "plan"), "x")
            counts = dict.fromkeys(
                (
                    "item_count",
                    "quoted_total_micro",
                    "input_tokens_per_item",
                    "max_output_tokens",
                    "created_at",
                    "expires_at",
                ),
                1,
            )
            conn.execute(tables.quotes.insert().values(id="x", workspace_id="x", **quote, **counts))
            file = dict.fromkeys(
                ("filename", "dialect", "models", "fields", "sha256", "object_key"), "x"
            )
            conn.execute(
                tables.files.insert().values(
                    id="x",
                    workspace_id="x",
                    **file,
                    bytes=1,
                    item_count=1,
                    input_tokens_estimate=1,
                    created_at=now,
                )
            )
            conn.execute(
                tables.batches.insert().values(
                    id="x",
                    **row,
                    **times,
                    quoted_total_micro=1,
                    fee_bps=590,
                    webhook_url=url,
                    webhook_secret_encrypted=self.vault.encrypt(SECRET),
                )
            )
            conn.execute(
                tables.events.insert().values(
                    id="evt_1",
                    batch_id="x",
                    type="batch.completed",
                    body=body,
                    created_at=now,
                    attempts=0,
                    next_attempt_at=now,
                )
            )
        return body

    def row(self) -> Any:
        with self.database.reading() as conn:
            return conn.execute(select(tables.events)).one()

    def deliver(
        self,
        *,
        allow_loopback_http: bool = True,
        schedule: DeliverySchedule = QUICK,
        within_s: float = 10.0,
    ) -> Any:
        async def run() -> None:
            courier = Courier(
                self.database,
                self.vault,
                allow_loopback_http=allow_loopback_http,
                schedule=schedule,
            )
            await courier.start()
            give_up_at = time.monotonic() + within_s
            while self.row().next_attempt_at is not None and time.monotonic() < give_up_at:  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.01)
            await courier.stop()

        asyncio.run(run())
        return self.row()


@pytest.fixture
def outgoing(tmp_path: Path) -> Iterator[Outgoing]:
    database = Database.open(tmp_path / "router.db")
    yield Outgoing(database, Vault.open(tmp_path / "secret_key"))
    database.close()


def test_a_failed_try_is_made_again_with_the_same_bytes(outgoing: Outgoing) -> None:
    with receiving(500, 429, 200) as receiver:
        body = outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert [came[2] for came in receiver.came] == [body] * 3
    assert event.delivered_at is not None
    assert event.attempts == 3
    for _, headers, sent in receiver.came:
        assert verify(headers, sent, SECRET).id == "evt_1"
        assert headers["webhook-id"] == "evt_1"


def test_after_the_last_retry_the_event_is_given_up(outgoing: Outgoing) -> None:
    with receiving(*[500] * 9) as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert len(receiver.came) == 1 + QUICK.retries
    assert event.gave_up_at is not None
    assert event.delivered_at is None


def test_gone_stops_at_once(outgoing: Outgoing) -> None:
    with receiving(410) as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert len(receiver.came) == 1
    assert event.gave_up_at is not None


def test_a_redirect_is_not_followed(outgoing: Outgoing) -> None:
    with receiving(302, 200) as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert [path for path, _, _ in receiver.came] == ["/hook", "/hook"]
    assert receiver.got == []
    assert event.delivered_at is not None


def test_a_connection_is_not_used_twice(outgoing: Outgoing) -> None:
    with receiving(500, 200) as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert event.delivered_at is not None
    assert len(receiver.ports) == len(receiver.came) == 2


def test_a_name_that_leads_elsewhere_a_moment_later_is_not_asked_again(
    outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["127.0.0.1", "127.0.0.2"]
    resolve = socket.getaddrinfo

    def rebinding(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return resolve(answers.pop(0) if name == "localhost" else host, *arguments, **options)

    with (
        receiving() as checked,
        receiving(address="127.0.0.2", port=int(checked.url.split(":")[2][:-5])) as inside,
    ):
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        outgoing.add(checked.url.replace("127.0.0.1", "localhost"))
        event = outgoing.deliver()

    assert event.delivered_at is not None
    assert inside.came == []
    assert answers == ["127.0.0.2"]
    ((_, headers, _),) = checked.came
    assert headers["host"] == checked.url.split("/")[2].replace("127.0.0.1", "localhost")


def test_proxies_of_the_environment_are_ignored(
    outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with receiving() as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert event.attempts == 1
    assert event.delivered_at is not None


def test_an_endless_answer_is_not_read_to_its_end(outgoing: Outgoing) -> None:
    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 4096)
        except OSError:
            handler.close_connection = True

    with receiving() as receiver:
        receiver.answer = pour
        outgoing.add(receiver.url)
        event = outgoing.deliver()

    assert event.attempts == 1
    assert event.delivered_at is not None


def test_a_receiver_that_drips_is_not_waited_for(outgoing: Outgoing) -> None:
    once = DeliverySchedule(first_retry_s=60, retries=0, timeout_s=0.5)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(300):
                handler.wfile.write(b"x")
                time.sleep(0.1)
        except OSError:
            pass

    with receiving() as receiver:
        receiver.answer = drip
        outgoing.add(receiver.url)
        event = outgoing.deliver(schedule=once, within_s=15.0)

    assert len(receiver.came) == 1
    assert event.gave_up_at is not None


def test_a_receiver_that_is_too_slow_is_tried_again(outgoing: Outgoing) -> None:
    impatient = DeliverySchedule(first_retry_s=0.5, retries=2, timeout_s=0.2)

    def sleep_once(handler: BaseHTTPRequestHandler) -> None:
        receiver.answer = None
        time.sleep(0.4)
        handler.close_connection = True

    with receiving() as receiver:
        receiver.answer = sleep_once
        outgoing.add(receiver.url)
        event = outgoing.deliver(schedule=impatient)

    assert len(receiver.came) == event.attempts == 2
    assert event.delivered_at is not None


def test_a_router_that_faces_the_network_does_not_call_its_own_machine(
    outgoing: Outgoing,
) -> None:
    with receiving() as receiver:
        outgoing.add(receiver.url)
        event = outgoing.deliver(allow_loopback_http=False)

    assert receiver.came == []
    assert event.gave_up_at is not None


def submit(client: Client, url: str) -> str:
    line = {
        "customer_item_id": "a",
        "operation": "responses",
        "input": {"messages": [{"role": "user", "content": "Hello"}]},
    }
    manifest = json.dumps(line).encode() + b"\n"
    file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="one.jsonl")
    quote = client.quote_model(["gpt-4o-mini"], estimated_items=1)
    body = {"quote_id": quote.quote_id, "input_file_id": file.file_id}
    return client.submit_batch(body, webhook={"url": url, "secret": SECRET}).id


def wait_for(receiver: Receiver, event_type: str, *, within_s: float = 20.0) -> dict[str, Any]:
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        for _, headers, body in list(receiver.came):
            event = verify(headers, body, SECRET)
            if event.type == event_type:
                return event.data
        time.sleep(0.02)
    raise AssertionError(f"no {event_type} in {within_s} s")


def test_a_batch_tells_of_its_beginning_and_its_end(tmp_path: Path) -> None:
    with running_router(tmp_path / "router") as router, receiving() as receiver:
        with Client(router.settings()) as client:
            batch_id = submit(client, receiver.url)
        submitted = wait_for(receiver, "batch.submitted")
        completed = wait_for(receiver, "batch.completed")
        log = router.log_path.read_text()

    assert submitted["state"] == "queued"
    assert completed["batch_id"] == batch_id
    assert completed["items_completed"] == 1
    assert completed["output_file_url"] == f"/v1/batches/{batch_id}/artifact-url"
    assert SECRET not in log
    assert SECRET.encode() not in (tmp_path / "router" / "router.db").read_bytes()


KILL_POINTS = ("delivery.before_send", "delivery.after_send", "delivery.after_noted")


def events_of(router: RunningRouter) -> list[Any]:
    database = Database.open(router.data_dir / "router.db")
    with database.reading() as conn:
        rows = list(conn.execute(select(tables.events)).all())
    database.close()
    return rows


@pytest.mark.drill
@pytest.mark.parametrize("point", KILL_POINTS)
def test_no_event_is_lost_when_the_router_dies(tmp_path: Path, point: str) -> None:
    killing = {"BATCHROUTER_KILL_AT": point}
    with running_router(tmp_path / "router", env=killing) as router, receiving() as receiver:
        with Client(router.settings()) as client:
            submit(client, receiver.url)
        assert router.wait_for_death() == -9
        router.start()
        wait_for(receiver, "batch.submitted", within_s=40)
        wait_for(receiver, "batch.completed", within_s=40)
        give_up_at = time.monotonic() + 40
        while any(event.delivered_at is None for event in events_of(router)):
            assert time.monotonic() < give_up_at
            time.sleep(0.2)

    ids = {json.loads(body)["id"] for _, _, body in receiver.came}
    bodies = {body for _, _, body in receiver.came}
    assert len(ids) == len(bodies)
