"""The one part `file` of an upload, pushed through as it arrives; nothing is spooled."""

from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from batchrouter.server.refusals import refusal

__all__ = ["FilePart"]


class FilePart:
    r"""Takes the body of a multipart request, and gives the bytes of its file on.

    Args:
        content_type: The request's `Content-Type`.
        sink: Called with every block of the file, in order.

    Attributes:
        filename: What the caller calls the file; known once the first block came.

    Example:
        >>> blocks = []
        >>> part = FilePart("multipart/form-data; boundary=b", blocks.append)
        >>> part.feed(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"')
        >>> part.feed(b"\r\n\r\nhello\r\n--b--\r\n")
        >>> part.finish()
        >>> part.filename, b"".join(blocks)
        ('a', b'hello')
    """

    def __init__(self, content_type: str, sink: Callable[[bytes], None]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise refusal("invalid_request", "body: must be multipart/form-data with the part file")
        self._sink = sink
        self._parts = 0
        self._ended = False
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self.filename = ""
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise refusal("invalid_request", f"body: {error}") from None

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the request's body.

        Raises:
            APIError: `invalid_request`, when they are no multipart or hold another part; and
                whatever the sink raises.
        """
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise refusal("invalid_request", f"body: is no multipart/form-data: {error}") from None

    def finish(self) -> None:
        """See that the body came whole.

        Raises:
            APIError: `invalid_request`, when it was cut short or had no part.
        """
        if not self._ended:
            raise refusal("invalid_request", "body: ends before its last boundary")
        if not self._parts:
            raise refusal("invalid_request", "file: the part is missing")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise refusal("invalid_request", "body: must have exactly one part, file")
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != "file":
            raise refusal("invalid_request", f"{name or 'body'}: the only part must be file")
        if b"content-transfer-encoding" in self._headers and self._headers[
            b"content-transfer-encoding"
        ].lower() not in {b"binary", b"8bit", b"7bit"}:
            raise refusal("invalid_request", "file: send its bytes as they are")
        self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._sink(data[start:end])

    def _end(self) -> None:
        self._ended = True
