"""A server that misbehaves on demand, a real router, and one way to call both clients."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batchrouter.api.client import AsyncClient, Client
from batchrouter.api.settings import Settings

API_KEY = "bk_live_super_secret"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Scripted:
    """A real HTTP/1.1 server on loopback whose every answer the test writes, byte by byte.

    An answer is bytes (sent, then the connection is closed), ``None`` (closed without a word),
    ``"reset"`` (TCP reset), or a function of the request and the socket.
    """

    base_url: str = ""
    requests: list[Request] = field(default_factory=list)
    answer: Callable[[Request], Any] = lambda _: None

    def answers(self, *replies: Any) -> None:
        """Answer in this order; the last one again and again."""
        left = list(replies)
        self.answer = lambda _: left.pop(0) if len(left) > 1 else left[0]

    @staticmethod
    def reply(
        status: int, body: Any = b"", headers: Mapping[str, str] | None = None, *, cut: int = 0
    ) -> bytes:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Length": str(len(raw)), "Date": "Sun, 22 Nov 2026 08:00:00 GMT"}
        head.update(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        sent = raw[: len(raw) - cut] if cut else raw
        return f"HTTP/1.1 {status} X\r\n{lines}Connection: close\r\n\r\n".encode() + sent

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                first = stream.readline().decode().split()
                if not first:
                    return
                headers: dict[str, str] = {}
                while line := stream.readline().decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", 0)))
                request = Request(first[0], first[1], headers, body)
                self.requests.append(request)
                answer = self.answer(request)
                if callable(answer):
                    answer(connection)
                elif answer == "reset":
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif answer is not None:
                    connection.sendall(answer)
            except OSError:
                return  # the client has gone, as some tests want


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended = threading.Event()
        workers: list[threading.Thread] = []

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                if ended.is_set():
                    connection.close()
                    return
                worker = threading.Thread(target=server._serve, args=(connection,))
                workers.append(worker)
                worker.start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield server
        ended.set()
        socket.create_connection(listener.getsockname()).close()
        acceptor.join()
        for worker in workers:
            worker.join()


Call = Callable[..., Any]


def caller_of(kind: str, settings: Settings) -> Call:
    def call(method: str, *args: Any, **options: Any) -> Any:
        if kind == "sync":
            with Client(settings) as client:
                return getattr(client, method)(*args, **options)

        async def main() -> Any:
            async with AsyncClient(settings) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(main())

    return call


@pytest.fixture
def settings(scripted: Scripted) -> Settings:
    return Settings(
        base_url=scripted.base_url,
        api_key=API_KEY,
        timeout_s=1.0,
        upload_timeout_s=1.0,
        retry_wait_s=0.01,
    )


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, settings: Settings) -> Call:
    """Call a method by name, on a `Client` and on an `AsyncClient` of the scripted server."""
    return caller_of(request.param, settings)


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a real router in its own process."""
    data = tmp_path_factory.mktemp("router")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATCHROUTER_")}
    log = (data.parent / "router.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "batchrouter.server", "--data", str(data), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        address = next(
            told[1]
            for line in process.stdout
            if (told := re.search(r"listening on (http://\S+)", line))
        )
        key = Path(data, "api_key").read_text().strip()
        yield Settings(base_url=address, api_key=key, timeout_s=20)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.wait(timeout=30)


@pytest.fixture(params=["sync", "async"])
def call_router(request: pytest.FixtureRequest, router: Settings) -> Call:
    """Call a method by name on both kinds of client of the real router."""
    return caller_of(request.param, router)
