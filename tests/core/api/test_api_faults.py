"""What goes wrong on a wire, on real sockets, with both clients."""

import asyncio
import gzip
import io
import logging
import pickle
import socket
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from batchrouter.api import transport
from batchrouter.api.client import AsyncClient, Client
from batchrouter.api.settings import Settings
from batchrouter.errors import (
    AuthError,
    BadRequestError,
    BatchrouterError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    StorageError,
    TransportError,
)

BATCH = {"id": "batch_1", "state": "queued"}
KEY = "run-7/part-0"


def test_a_call_says_who_calls_and_what_it_accepts(scripted: Any, call: Any) -> None:
    scripted.answers(scripted.reply(200, BATCH))

    call("retrieve_batch", "batch_1", include_billing_receipt=True)

    (request,) = scripted.requests
    assert request.path == "/v1/batches/batch_1?include_billing_receipt=true"
    assert request.headers["authorization"] == "Bearer bk_live_super_secret"
    assert request.headers["user-agent"].startswith("batchrouter/")
    assert len(request.headers["x-request-id"]) == 32


def test_lost_replies_are_asked_for_again_under_one_request_id(scripted: Any, call: Any) -> None:
    scripted.answers(None, "reset", scripted.reply(200, BATCH, cut=5), scripted.reply(200, BATCH))

    assert call("retrieve_batch", "batch_1").id == "batch_1"

    assert len(scripted.requests) == 4
    assert len({request.headers["x-request-id"] for request in scripted.requests}) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(scripted: Any, call: Any, status: int) -> None:
    busy = scripted.reply(status, headers={"Retry-After": "0"})
    scripted.answers(busy, busy, scripted.reply(200, BATCH))

    assert call("cancel_batch", "batch_1").id == "batch_1"
    assert len(scripted.requests) == 3


def test_retry_after_is_waited_out(scripted: Any, call: Any) -> None:
    busy = scripted.reply(429, headers={"Retry-After": "1"})
    scripted.answers(busy, scripted.reply(200, BATCH))
    began = time.monotonic()

    call("retrieve_batch", "batch_1")

    assert time.monotonic() - began >= 1.0


def test_a_wait_too_long_is_handed_to_the_caller(scripted: Any, call: Any) -> None:
    scripted.answers(scripted.reply(429, headers={"Retry-After": "3600"}))

    with pytest.raises(RateLimitedError) as caught:
        call("retrieve_batch", "batch_1")

    assert caught.value.retry_after_s == 3600
    assert caught.value.retryable
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("fault", [None, "reset", 503])
def test_a_create_without_a_key_is_sent_once_whatever_happens(
    scripted: Any, call: Any, fault: Any
) -> None:
    scripted.answers(scripted.reply(fault) if fault == 503 else fault)

    with pytest.raises((TransportError, ServerError)):
        call("submit_batch", {"quote_id": "q"})

    assert len(scripted.requests) == 1


def test_a_create_under_a_key_is_sent_again_byte_by_byte(scripted: Any, call: Any) -> None:
    replayed = scripted.reply(202, BATCH, {"Idempotent-Replayed": "true"})
    scripted.answers(None, scripted.reply(503), replayed)

    batch = call(
        "submit_batch",
        {"quote_id": "q", "metadata": {"ünï": "☃"}},
        webhook={"url": "https://h.example", "secret": "whsec_1"},
        idempotency_key=KEY,
    )

    assert batch.replayed
    assert {request.headers["idempotency-key"] for request in scripted.requests} == {KEY}
    assert len({request.body for request in scripted.requests}) == 1
    assert scripted.requests[0].json["webhook"]["secret"] == "whsec_1"


def test_a_server_that_says_nothing_is_not_waited_for(scripted: Any, settings: Settings) -> None:
    scripted.answer = lambda _: lambda connection: (connection.recv(1), None)[1]
    impatient = settings.replace(timeout_s=0.2, max_attempts=2)
    began = time.monotonic()

    with (
        Client(impatient) as client,
        pytest.raises(TransportError, match="did not answer in time"),
    ):
        client.retrieve_batch("batch_1")

    assert time.monotonic() - began < 20
    assert len(scripted.requests) == 2


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.02)


def test_a_reply_that_drips_is_given_up(scripted: Any, settings: Settings) -> None:
    scripted.answer = lambda _: drip
    impatient = settings.replace(timeout_s=0.3, max_attempts=1)

    with Client(impatient) as client, pytest.raises(TransportError, match="raise timeout_s"):
        client.retrieve_batch("batch_1")


def test_a_reply_without_end_is_refused(
    scripted: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few enough to come within the second that this client waits, on a busy machine too.
    monkeypatch.setattr(transport, "MAX_REPLY_BYTES", 4 << 20)

    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(8):
            connection.sendall(b" " * (1 << 20))

    scripted.answer = lambda _: pour

    with pytest.raises(ProtocolError, match="more than"):
        call("retrieve_batch", "batch_1")


def test_a_reply_that_is_small_only_while_it_is_compressed_is_refused(
    scripted: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_REPLY_BYTES", 4 << 20)
    bomb = gzip.compress(b" " * (8 << 20))
    assert len(bomb) < 10_000
    scripted.answers(scripted.reply(200, bomb, {"Content-Encoding": "gzip"}))

    with pytest.raises(ProtocolError, match="more than"):
        call("retrieve_batch", "batch_1")


@pytest.mark.parametrize("garbage", [b"hello\r\n\r\n", b"HTTP/1.1 banana\r\n\r\n", b"\x00" * 100])
def test_what_is_no_http_is_a_transport_error(scripted: Any, call: Any, garbage: bytes) -> None:
    scripted.answers(garbage)

    with pytest.raises(TransportError):
        call("submit_batch", {"quote_id": "q"})


def test_a_refused_connection_names_the_host_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nobody = Settings(
        base_url=f"http://127.0.0.1:{port}", api_key="hunter2", retry_wait_s=0.01, max_attempts=2
    )

    with Client(nobody) as client, pytest.raises(TransportError) as caught:
        client.list_batches()

    assert f"127.0.0.1:{port} refuses connections: check base_url" in str(caught.value)
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_errors_have_class_code_details_and_request_id_and_pickle(scripted: Any, call: Any) -> None:
    body = {"error": {"code": "invalid_manifest", "message": "3 bad lines", "details": {"n": 3}}}
    scripted.answers(scripted.reply(400, body, {"X-Request-Id": "req_9"}))

    with pytest.raises(BadRequestError) as caught:
        call("quote_model", ["m"], estimated_items=1)

    revived = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, revived):
        assert (error.code, error.details, error.request_id) == (
            "invalid_manifest",
            {"n": 3},
            "req_9",
        )


def test_no_error_and_no_log_shows_the_key(
    scripted: Any, call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for answer in (scripted.reply(401), scripted.reply(307, headers={"Location": "/x"}), b"zzz"):
        scripted.answers(answer)
        with pytest.raises(BatchrouterError) as caught:
            call("server_time")
        assert "super_secret" not in str(caught.value)
        with pytest.raises(BatchrouterError) as caught:
            call("submit_batch", {})
        assert "super_secret" not in str(caught.value)

    assert "super_secret" not in caplog.text
    keyless = [r for r in scripted.requests if r.path == "/healthz"]
    assert keyless
    assert all("authorization" not in request.headers for request in keyless)


def test_a_redirect_is_not_followed(scripted: Any, call: Any) -> None:
    scripted.answers(scripted.reply(307, headers={"Location": f"{scripted.base_url}/other"}))

    with pytest.raises(ProtocolError, match="set base_url"):
        call("list_batches")

    assert len(scripted.requests) == 1


class TestUpload:
    FILE = {"file_id": "file_1"}  # noqa: RUF012 - never changed

    def test_is_one_multipart_part_of_known_length(
        self, scripted: Any, call: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / 'odd "name"\n.jsonl'
        path.write_bytes(b'{"a": 1}\n' * 300_000)
        size = path.stat().st_size
        scripted.answers(scripted.reply(201, {**self.FILE, "bytes": size}))
        seen: list[tuple[int, int]] = []

        uploaded = call("upload_manifest", path, on_progress=lambda *at: seen.append(at))

        (request,) = scripted.requests
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        head, _, rest = request.body.partition(b"\r\n\r\n")
        assert uploaded.file_id == "file_1"
        assert b'name="file"; filename="odd %22name%22%0A.jsonl"' in head
        assert rest == path.read_bytes() + b"\r\n--" + boundary + b"--\r\n"
        assert int(request.headers["content-length"]) == len(request.body)
        assert "transfer-encoding" not in request.headers
        assert seen[-1] == (size, size)
        assert seen == sorted(seen)

    def test_starts_again_from_the_first_byte(self, scripted: Any, call: Any) -> None:
        scripted.answers(None, scripted.reply(503), scripted.reply(201, self.FILE))
        opened: list[io.BytesIO] = []

        def open_anew() -> io.BytesIO:
            opened.append(io.BytesIO(b'{"a": 1}\n'))
            return opened[-1]

        call("upload_manifest", open_anew, filename="../up/x.jsonl")

        assert len({request.body for request in scripted.requests}) == 1
        assert b'filename="x.jsonl"' in scripted.requests[0].body
        assert all(source.closed for source in opened)

    def test_an_empty_manifest_is_sent_as_it_is(
        self, scripted: Any, call: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "m.jsonl"
        path.touch()
        scripted.answers(scripted.reply(201, {**self.FILE, "bytes": 0}))

        assert call("upload_manifest", str(path)).bytes == 0

    def test_a_missing_file_and_a_changing_one_are_storage_errors(
        self, scripted: Any, call: Any, tmp_path: Path
    ) -> None:
        scripted.answers(scripted.reply(201, self.FILE))

        with pytest.raises(StorageError, match="No such file"):
            call("upload_manifest", tmp_path / "absent.jsonl")
        for told in (3, 30):
            with pytest.raises(StorageError, match="no longer"):
                call("upload_manifest", lambda: io.BytesIO(b"ten bytes!"), size_bytes=told)

    def test_a_server_that_got_other_bytes_is_told_so(
        self, scripted: Any, call: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "m.jsonl"
        path.write_bytes(b"{}\n")
        scripted.answers(scripted.reply(201, {**self.FILE, "bytes": 2}))

        with pytest.raises(ProtocolError, match="2 bytes of a manifest of 3"):
            call("upload_manifest", path)

    def test_an_early_refusal_is_read_although_bytes_are_left(
        self, scripted: Any, call: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "m.jsonl"
        path.write_bytes(b"x" * 1_000_000)
        body = {"error": {"code": "invalid_scope", "message": "no"}}
        scripted.answers(scripted.reply(403, body))

        with pytest.raises(AuthError, match="has the scope"):
            call("upload_manifest", path)

    def test_memory_is_flat(self, scripted: Any, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        with path.open("wb") as out:
            out.truncate(64 << 20)
        taken = scripted.reply(201, self.FILE)
        listener = socket.create_server(("127.0.0.1", 0))

        def swallow() -> None:  # the scripted server would hold the body itself
            connection, _ = listener.accept()
            with listener, connection:
                left = path.stat().st_size
                while left > 0:
                    left -= len(connection.recv(1 << 20))
                connection.settimeout(0.2)
                try:
                    while connection.recv(1 << 16):
                        pass
                except TimeoutError:
                    connection.sendall(taken)

        thread = threading.Thread(target=swallow)
        thread.start()
        settings = Settings(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", api_key="k", max_attempts=1
        )
        tracemalloc.start()
        with Client(settings) as client:
            client.upload_manifest(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        thread.join()

        assert peak < 16 << 20


def test_an_upload_does_not_block_the_event_loop(scripted: Any, settings: Settings) -> None:
    scripted.answers(scripted.reply(201, TestUpload.FILE))

    class SlowDisk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.2)
            return super().read(size)

    async def main() -> int:
        beats = 0
        async with AsyncClient(settings) as client:
            upload = asyncio.ensure_future(client.upload_manifest(lambda: SlowDisk(b"{}\n")))
            while not upload.done():
                await asyncio.sleep(0.01)
                beats += 1
            await upload
        return beats

    assert asyncio.run(main()) > 15


def test_a_cancelled_upload_leaves_no_open_file(scripted: Any, settings: Settings) -> None:
    scripted.answers(scripted.reply(201, TestUpload.FILE))
    opened: list[io.BytesIO] = []

    class SlowDisk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.3)
            return super().read(size)

    def open_slow() -> io.BytesIO:
        opened.append(SlowDisk(b"{}\n"))
        return opened[-1]

    async def main() -> None:
        async with AsyncClient(settings) as client:
            upload = asyncio.ensure_future(client.upload_manifest(open_slow, size_bytes=3))
            await asyncio.sleep(0.1)
            upload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upload

    asyncio.run(main())
    assert opened
    assert all(source.closed for source in opened)


def test_a_client_is_shared_by_threads(scripted: Any, settings: Settings) -> None:
    scripted.answers(scripted.reply(200, BATCH))
    read: list[str] = []

    with Client(settings) as client:
        threads = [
            threading.Thread(target=lambda: read.append(client.retrieve_batch("b").id))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert read == ["batch_1"] * 8
