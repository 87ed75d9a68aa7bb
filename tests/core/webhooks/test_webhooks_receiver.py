"""The receiver under a real uvicorn, spoken to over a real socket."""

import asyncio
import json
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchrouter.errors import ConfigError
from batchrouter.webhooks import receiver as receiver_module
from batchrouter.webhooks.inbox import Inbox
from batchrouter.webhooks.receiver import MAX_BODY_BYTES, receiver
from batchrouter.webhooks.signing import sign


def delivery(running: Any, name: str = "evt_1", **fields: Any) -> tuple[bytes, dict[str, str]]:
    now = int(time.time())
    event = {"id": name, "type": "batch.completed", "created": now, "data": {"batch_id": "b"}}
    body = json.dumps({**event, **fields}).encode()
    return body, sign(running.secret, body, event_id=name, timestamp=now)


def test_a_delivery_is_kept_before_it_is_acknowledged(running: Any, inbox: Inbox) -> None:
    assert running.send(*delivery(running)) == (204, None)

    ((event,), _) = inbox.events_since(None)
    assert (event.id, event.batch_id) == ("evt_1", "b")


def test_a_replay_is_acknowledged_and_kept_once(running: Any, inbox: Inbox) -> None:
    body, headers = delivery(running)
    bare = {"x-batchrouter-signature": headers["x-batchrouter-signature"]}

    for sent in (headers, headers, bare):
        assert running.send(body, sent)[0] == 204

    assert len(inbox.events_since(None)[0]) == 1


def test_what_is_not_to_be_trusted_is_refused_and_not_kept(running: Any, inbox: Inbox) -> None:
    body, headers = delivery(running)
    old = int(time.time()) - 301
    stale = sign(running.secret, body, event_id="evt_1", timestamp=old)
    for sent in ({}, {**headers, "webhook-signature": "v1,AAAA"}, stale):
        status, told = running.send(body, sent)
        assert (status, told["error"]["code"]) == (401, "webhook_invalid")

    assert running.send(body + b" ", headers)[0] == 401
    assert inbox.events_since(None)[0] == []


def test_a_trusted_sender_of_nonsense_is_told_so(running: Any) -> None:
    body, _ = b"{}", None

    status, told = running.send(
        body, sign(running.secret, body, event_id="e", timestamp=int(time.time()))
    )

    assert (status, told["error"]["code"]) == (400, "webhook_malformed")


def test_a_body_over_the_limit_is_refused_told_or_untold(running: Any, inbox: Inbox) -> None:
    body, headers = delivery(running, data={"batch_id": "b", "pad": "x" * MAX_BODY_BYTES})
    told = (f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n").encode()
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"40001\r\n" + b"x" * 0x40001 + b"\r\n"

    assert running.send(body, headers)[0] == 413
    for raw in (told, chunked):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(raw)
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert inbox.events_since(None)[0] == []


def test_only_post_is_a_delivery(running: Any) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert running.send(b"", method=method)[0] == 405


def test_a_body_that_does_not_come_is_not_waited_for(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "BODY_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_an_inbox_that_cannot_be_written_makes_the_sender_try_again(
    running: Any, inbox: Inbox, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "inbox.db")) as connection:
        connection.execute("alter table batchrouter_inbox rename to elsewhere")
        status, told = running.send(*delivery(running))
        connection.execute("alter table elsewhere rename to batchrouter_inbox")

    assert (status, told["error"]["code"]) == (503, "storage_error")
    assert "table" not in told["error"]["message"]
    assert running.send(*delivery(running))[0] == 204
    assert len(inbox.events_since(None)[0]) == 1


def test_deliveries_at_once_are_all_kept(running: Any, inbox: Inbox) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda n=n: statuses.append(running.send(*delivery(running, f"evt_{n % 10}"))[0])
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [204] * 20
    assert sorted(e.id for e in inbox.events_since(None)[0]) == [f"evt_{n}" for n in range(10)]


def test_a_sender_that_leaves_in_mid_body_leaves_nothing(running: Any, inbox: Inbox) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")

    assert running.send(*delivery(running))[0] == 204
    assert len(inbox.events_since(None)[0]) == 1


def test_a_websocket_is_closed(inbox: Inbox) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(receiver(inbox, "secret-of-the-test")({"type": "websocket"}, receive, send))

    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_an_empty_secret_is_refused(inbox: Inbox) -> None:
    with pytest.raises(ConfigError, match="anyone could sign"):
        receiver(inbox, "")
