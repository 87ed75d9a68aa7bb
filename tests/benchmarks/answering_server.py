"""A server that answers each chat at once, so that what is measured is whoever asks it.

    python tests/benchmarks/answering_server.py

Prints its port. Speaks just enough HTTP/1.1, kept alive, for clients that send `Content-Length`.
`GET /first` tells when the first chat since the last look came, in seconds of the epoch.
"""

import asyncio
import json
import time

_ANSWER = json.dumps({
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "An answer of ten words or so, as usual.",
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
}).encode()


class Answering(asyncio.Protocol):
    """One connection; requests come one after another."""

    first_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length :]
            self._answer(is_look=head.startswith(b"get /first"))

    def _answer(self, *, is_look: bool) -> None:
        if is_look:
            content = json.dumps({"first_at": Answering.first_at}).encode()
            Answering.first_at = None
        else:
            Answering.first_at = Answering.first_at or time.time()
            content = _ANSWER
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        self._transport.write(f"{head}\r\n\r\n".encode() + content)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
