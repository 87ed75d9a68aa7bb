"""How a request goes through the fault proxy: read, passed on, answered, or broken on the way."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from batchrouter.testing.proxy import Rule

_PIECE_BYTES = 64 * 1024
_UPSTREAM_TIMEOUT_S = 120.0
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
}
_LINGER_NOT = struct.pack("ii", 1, 0)
_NO_CONTENT = {204, 304}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go."""

    host: str
    port: int


class Listener:
    """A port that can be closed and opened again while its number stays."""

    def __init__(
        self, note: "Callable[[str, str], Rule | None]", upstream: Callable[[], Upstream]
    ) -> None:
        self.note = note
        self.upstream = upstream
        self._lock = threading.Lock()
        self._server: _Server | None = _Server(("127.0.0.1", 0), _Handler)
        self.port: int = self._server.server_address[1]
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Listen; nothing happens if it does already."""
        with self._lock:
            if self._thread is not None:
                return
            server = self._server or _Server(("127.0.0.1", self.port), _Handler)
            server.listener = self
            self._server = server
            self._thread = threading.Thread(
                target=server.serve_forever, args=(0.02,), daemon=True, name="fault-proxy"
            )
            self._thread.start()

    def close(self) -> None:
        """Refuse new connections and cut those that are open."""
        with self._lock:
            server, thread = self._server, self._thread
            self._server = self._thread = None
        if server is None:
            return
        if thread is not None:
            server.shutdown()
            thread.join()
        server.cut_all()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    listener: Listener

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is what this proxy is for."""

    def cut_all(self) -> None:
        for connection in list(self._open):
            # A shutdown, not a close: it wakes the thread that is reading from it.
            _hang_up(connection, reset=False)


def _hang_up(connection: socket.socket, *, reset: bool) -> None:
    try:
        if reset:
            # Zero linger: the close sends RST, and what is unread is gone.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        else:
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep a test's output clean."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, HTTPException):
            self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        # The base looks for `do_<METHOD>`; every method takes the same way.
        if name.startswith("do_"):
            return self._pass_on
        raise AttributeError(name)

    def _pass_on(self) -> None:
        listener = cast("_Server", self.server).listener
        rule = listener.note(self.command, self.path.partition("?")[0])
        fault = rule.fault if rule else None
        if rule is not None and fault == "answer":
            self._answer(rule)
            return
        upstream = listener.upstream()
        connection = HTTPConnection(upstream.host, upstream.port, timeout=_UPSTREAM_TIMEOUT_S)
        try:
            if rule is not None and fault == "reset":
                if rule.after_bytes:
                    self._send(connection, self._body(), at_most=rule.after_bytes)
                self._break(reset=True)
                return
            body = self._body()
            if fault == "duplicate":
                whole = list(body)
                self._ask(upstream, whole)
                body = iter(whole)
            try:
                self._send(connection, body)
            except (BrokenPipeError, ConnectionResetError):
                # The router has refused in mid-body and said why; the rest stays unread.
                self.close_connection = True
            self._reply(connection.getresponse(), rule)
        except (OSError, HTTPException):
            self._break(reset=True)
        finally:
            connection.close()

    def _ask(self, upstream: Upstream, body: list[bytes]) -> None:
        connection = HTTPConnection(upstream.host, upstream.port, timeout=_UPSTREAM_TIMEOUT_S)
        try:
            self._send(connection, iter(body))
            connection.getresponse().read()
        finally:
            connection.close()

    def _send(
        self, connection: HTTPConnection, body: Iterator[bytes], *, at_most: int | None = None
    ) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        chunked = self._is_chunked()
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        left = at_most
        for whole in body:
            piece = whole if left is None else whole[:left]
            if piece:
                connection.send(_chunk(piece) if chunked else piece)
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    return
        if chunked and at_most is None:
            connection.send(b"0\r\n\r\n")

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _body(self) -> Iterator[bytes]:
        if not self._is_chunked():
            yield from self._pieces(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self._pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _pieces(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise HTTPException("the client hung up in mid-body")
            left -= len(piece)
            yield piece

    def _reply(self, response: HTTPResponse, rule: "Rule | None") -> None:
        fault = rule.fault if rule else None
        if rule is not None and fault == "drop_reply":
            response.read()
            self._break(reset=False)
            return
        if rule is not None and fault == "delay":
            time.sleep(rule.seconds_s)
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        bodiless = self.command == "HEAD" or response.status in _NO_CONTENT
        chunked = response.length is None and not bodiless
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = rule.after_bytes if rule is not None and fault == "truncate" else None
        pause_s = rule.seconds_s if rule is not None and fault == "trickle" else None
        while not bodiless and (piece := response.read1(_PIECE_BYTES)):
            sent = piece if left is None else piece[:left]
            for part in (sent,) if pause_s is None else _bytes(sent):
                time.sleep(pause_s or 0)
                self.wfile.write(_chunk(part) if chunked and part else part)
            if left is not None:
                left -= len(sent)
                if left <= 0:
                    self.wfile.flush()
                    self._break(reset=False)
                    return
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, rule: "Rule") -> None:
        for _ in self._body():
            pass
        self.send_response_only(rule.status)
        if rule.retry_after_s is not None:
            self.send_header("Retry-After", f"{rule.retry_after_s:g}")
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(rule.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(rule.body)

    def _break(self, *, reset: bool) -> None:
        self.close_connection = True
        _hang_up(self.connection, reset=reset)


def _bytes(piece: bytes) -> Iterator[bytes]:
    return (piece[at : at + 1] for at in range(len(piece)))


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)
