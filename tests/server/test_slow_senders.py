"""Slow loris: callers that send a byte now and then hold a socket, and nobody else up."""

import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from batchrouter import Client
from batchrouter.testing import RunningRouter, running_router

CALLERS = 200
"""Far more than a router has threads."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@contextlib.contextmanager
def trickling(router: RunningRouter, begun: bytes, piece: bytes) -> Iterator[None]:
    """Have many callers send the begin of a request, and then a piece five times a second."""
    address = urlsplit(router.base_url)
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(0.2):
            for each in sockets:
                each.sendall(piece)

    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection((address.hostname, address.port), 10))
            for _ in range(CALLERS)
        ]
        for each in sockets:
            each.sendall(begun)
        sending = threading.Thread(target=go_on)
        sending.start()
        try:
            yield
        finally:
            done.set()
            sending.join()


def work_goes_on(router: RunningRouter) -> None:
    with Client(router.settings(timeout_s=30)) as client:
        line = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Say hello"}}
        manifest = json.dumps(line).encode() + b"\n"
        file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="one.jsonl")
        quote = client.quote_model(["gpt-4o-mini"], estimated_items=1)
        batch = client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id})
        while not client.retrieve_batch(batch.id).is_terminal:
            threading.Event().wait(0.1)
        held = io.BytesIO()
        client.download_artifact(batch.id, held)
    assert b'"customer_item_id":"a"' in held.getvalue().replace(b'": "', b'":"')


def test_headers_that_do_not_end(router: RunningRouter) -> None:
    with trickling(router, b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"A: b\r\n"):
        work_goes_on(router)


@pytest.mark.parametrize("path", ["/v1/batches/input-manifests", "/v1/quotes/model"])
def test_bodies_that_do_not_end(router: RunningRouter, path: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(router.base_url).netloc}\r\n"
        f"Authorization: Bearer {router.api_key}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    with trickling(router, head.encode(), b"a"):
        work_goes_on(router)


def test_the_router_lives_on_with_all_its_callers_gone(router: RunningRouter) -> None:
    work_goes_on(router)
    left = [*(router.data_dir / "objects").rglob("*#*"), *(router.data_dir / "scratch").glob("*")]
    assert [path for path in left if path.is_file()] == []
