"""The fault proxy against a small real server: what it counts, passes on, and breaks."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from batchrouter.testing import FaultProxy

REPLY = b"0123456789" * 1000


class _Origin(BaseHTTPRequestHandler):
    """Answers with a fixed body and remembers each whole request."""

    protocol_version = "HTTP/1.1"
    got: list[tuple[str, str, bytes]]

    def log_message(self, format, *args) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        if len(body) == length or not length:
            self.got.append((self.command, self.path, body))
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\nwiki\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(REPLY)))
        self.end_headers()
        self.wfile.write(REPLY)

    def do_GET(self) -> None:
        self.do_POST()

    def _chunks(self) -> bytes:
        whole = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return whole


@pytest.fixture
def origin() -> Iterator[type[_Origin]]:
    fresh = type("Fresh", (_Origin,), {"got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), fresh)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fresh.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fresh
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(origin) -> Iterator[FaultProxy]:
    with FaultProxy(origin.url) as proxy:
        yield proxy


def ask(
    proxy: FaultProxy,
    method: str = "POST",
    path: str = "/v1/batches",
    body: bytes | Iterator[bytes] | None = b"hello",
) -> tuple[int, dict[str, str], bytes]:
    host, port = proxy.base_url.removeprefix("http://").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()


def test_passes_requests_and_replies_on_unchanged(proxy, origin) -> None:
    status, headers, body = ask(proxy, path="/v1/batches?after=x")

    assert (status, body) == (200, REPLY)
    assert headers["Content-Length"] == str(len(REPLY))
    assert origin.got == [("POST", "/v1/batches?after=x", b"hello")]


def test_passes_chunked_bodies_both_ways(proxy, origin) -> None:
    _, headers, body = ask(proxy, path="/chunked", body=iter([b"a" * 70_000, b"b"]))

    assert origin.got[0][2] == b"a" * 70_000 + b"b"
    assert body == b"wiki"
    assert headers["Transfer-Encoding"] == "chunked"


def test_one_connection_serves_many_requests(proxy, origin) -> None:
    host, port = proxy.base_url.removeprefix("http://").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", "/v1/batches")
            assert connection.getresponse().read() == REPLY

    assert proxy.count("GET", "/v1/batches") == 3


def test_drops_the_reply_of_the_nth_match_after_the_router_took_it(proxy, origin) -> None:
    proxy.drop_reply("POST", "/v1/batches", nth=2)

    assert ask(proxy)[0] == 200
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy)
    assert ask(proxy)[0] == 200

    assert len(origin.got) == 3
    assert [each.fault for each in proxy.seen] == [None, "drop_reply", None]


def test_a_rule_leaves_other_methods_and_paths_alone(proxy, origin) -> None:
    proxy.drop_reply("POST", "/v1/batches")

    assert ask(proxy, "GET", "/v1/batches", None)[0] == 200
    assert ask(proxy, "POST", "/v1/batches/batch_1/cancel")[0] == 200
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy)


def test_counts_by_method_and_pattern(proxy) -> None:
    ask(proxy, "GET", "/v1/batches/batch_1", None)
    ask(proxy, "GET", "/v1/batches/batch_1/artifact-url?x=1", None)
    ask(proxy)

    assert proxy.count("GET", "/v1/batches/*") == 2
    assert proxy.count("*", "*") == 3
    assert proxy.count("GET", "/v1/batches/*/artifact-url") == 1


def test_delays_the_reply(proxy) -> None:
    proxy.delay("*", "*", seconds_s=0.3)

    began = time.monotonic()
    ask(proxy)

    assert time.monotonic() - began >= 0.3


def test_truncates_the_reply_while_the_head_promises_all_of_it(proxy) -> None:
    proxy.truncate("GET", "*", after_bytes=123)

    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy, "GET", "/file", None)

    assert caught.value.partial == REPLY[:123]


def test_resets_before_the_router_hears_anything(proxy, origin) -> None:
    proxy.reset("POST", "*")

    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        ask(proxy)

    assert origin.got == []


def test_resets_in_mid_upload(proxy, origin) -> None:
    proxy.reset("POST", "*", after_bytes=100_000)

    with pytest.raises(OSError):
        ask(proxy, body=b"x" * 5_000_000)

    assert origin.got == []


def test_sends_a_request_twice(proxy, origin) -> None:
    proxy.duplicate("POST", "/v1/batches")

    assert ask(proxy)[0] == 200

    assert origin.got == [("POST", "/v1/batches", b"hello")] * 2


def test_answers_for_the_router(proxy, origin) -> None:
    proxy.answer("POST", "*", status=429, retry_after_s=2, body=b'{"error": {}}', times=2)

    first, second, third = ask(proxy), ask(proxy), ask(proxy)

    assert (first[0], first[1]["Retry-After"], first[2]) == (429, "2", b'{"error": {}}')
    assert (second[0], third[0]) == (429, 200)
    assert len(origin.got) == 1


def test_goes_away_and_comes_back_on_the_same_port(proxy) -> None:
    ask(proxy)

    proxy.go_away()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.come_back()

    assert ask(proxy)[0] == 200


def test_going_away_cuts_open_connections(proxy) -> None:
    host, port = proxy.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/batches HTTP/1.1\r\nContent-Length: 10\r\n\r\n123")
        proxy.wait_for("POST", "/v1/batches")
        proxy.go_away(0.1)
        assert connection.recv(1000) == b""

    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at:
        try:
            assert ask(proxy)[0] == 200
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("it did not come back")


def test_a_router_that_is_down_is_a_reset(origin) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            FaultProxy(f"http://127.0.0.1:{taken.getsockname()[1]}") as proxy,
            pytest.raises(OSError),
        ):
            ask(proxy)
