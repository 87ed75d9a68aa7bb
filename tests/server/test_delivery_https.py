"""HTTPS deliveries: to the address that was checked, proven to be the name that was asked for."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchrouter.server.delivery.addresses import Destination
from batchrouter.server.delivery.courier import open_http, post
from batchrouter.server.delivery.outbox import DueEvent
from batchrouter.webhooks.signing import mint_secret, verify
from server.certificates import Authority

HOST = "hooks.example.com"
SECRET = mint_secret()
BODY = b'{"id":"evt_1","type":"batch.completed","created":1,"data":{}}'
EVENT = DueEvent("evt_1", BODY, f"https://{HOST}/hook?a=b", SECRET, 1)
SCENE = Path(__file__).with_name("public_scene.py")


class Receiver:
    """An HTTPS server on loopback; keeps what TLS and HTTP asked it for."""

    def __init__(self, certificate: Path) -> None:
        self.names: list[str | None] = []
        self.came: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.came.append((self.path, dict(self.headers.items()), body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(HTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a handshake that the client breaks off is what some tests are about

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.path))
    return made


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    running = Receiver(authority.certify(HOST))
    yield running
    running.stop()


def delivered(receiver: Receiver, host: str = HOST) -> int:
    """Post to a destination as `destination_of` makes them, but that it is on loopback."""
    port = receiver.server.server_port
    destination = Destination("https", host, port, "/hook?a=b", "127.0.0.1")

    async def run() -> int:
        async with open_http(5.0) as client:
            return await post(client, destination, EVENT)

    return asyncio.run(run())


def test_tls_asks_for_the_name_while_the_connection_goes_to_the_address(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    resolve = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)

    assert delivered(receiver) == 204

    ((path, headers, body),) = receiver.came
    assert receiver.names == [HOST]
    assert headers["Host"] == f"{HOST}:{receiver.server.server_port}"
    assert path == "/hook?a=b"
    assert verify(headers, body, SECRET, now=None).id == "evt_1"
    assert HOST not in asked


def test_a_certificate_for_another_name_is_refused(receiver: Receiver) -> None:
    with pytest.raises(httpx.ConnectError, match=r"not valid for 'other\.example\.com'"):
        delivered(receiver, host="other.example.com")

    assert receiver.came == []


def test_an_authority_that_nobody_named_is_not_trusted(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        delivered(receiver)

    assert receiver.came == []


def in_public(folder: Path, **asked: Any) -> dict[str, Any]:
    """Run the scene in a network of its own, where loopback has public addresses."""
    isolated = ["unshare", "--net", "--mount"]
    may = os.geteuid() == 0 and subprocess.run(
        [*isolated, "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    )
    if not may or may.returncode:
        pytest.skip("only root can make a network of its own")
    done = subprocess.run(
        [*isolated, sys.executable, str(SCENE), str(folder)],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": str(SCENE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_router_delivers_to_a_public_receiver(tmp_path: Path) -> None:
    told = in_public(
        tmp_path, hosts=[(HOST, "93.184.216.34")], url=f"https://{HOST}:8443/hook?a=b", wait_s=40
    )

    assert told["code"] == "accepted"
    assert {event["type"] for event in told["came"]} == {"batch.submitted", "batch.completed"}
    for event in told["came"]:
        assert event["to"] == "93.184.216.34"
        assert (event["sni"], event["host"]) == (HOST, f"{HOST}:8443")
        assert event["path"] == "/hook?a=b"


@pytest.mark.parametrize(
    "hosts",
    [
        [(HOST, "10.0.0.7")],
        [(HOST, "127.0.0.1")],
        [(HOST, "93.184.216.34"), (HOST, "10.0.0.7")],
    ],
    ids=["private", "loopback", "mixed"],
)
def test_a_name_that_leads_inside_is_not_followed(
    tmp_path: Path, hosts: list[tuple[str, str]]
) -> None:
    told = in_public(tmp_path, hosts=hosts, url=f"https://{HOST}:8443/hook", wait_s=3)

    assert told["code"] == "accepted"
    assert told["came"] == []
    assert "is not a public address" in told["log"]
