"""An inbox, and a receiver for it under a real uvicorn on a real socket."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from batchrouter.webhooks.inbox import Inbox, open_inbox
from batchrouter.webhooks.receiver import receiver
from batchrouter.webhooks.signing import mint_secret


class Running:
    """A receiver in a thread of its own, on a port of its own."""

    def __init__(self, inbox: Inbox, secret: str) -> None:
        self.secret = secret
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(receiver(inbox, self.secret), log_level="warning", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def send(
        self, body: bytes, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, "/any/path", body, headers or {})
            reply = connection.getresponse()
            raw = reply.read()
            return reply.status, json.loads(raw) if raw else None
        finally:
            connection.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    opened = open_inbox(f"sqlite:///{tmp_path}/inbox.db")
    yield opened
    opened.close()


@pytest.fixture(params=[mint_secret()], ids=["minted"])
def running(request: pytest.FixtureRequest, inbox: Inbox) -> Iterator[Running]:
    """A receiver for the inbox; parametrize it indirectly to choose the secret."""
    server = Running(inbox, request.param)
    yield server
    server.stop()
