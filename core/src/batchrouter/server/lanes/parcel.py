"""What of a chunk goes into one provider batch, how it is kept until then, and its results.

Items and results are objects beside the manifests: `lanes/<submission>/items.jsonl` before anything
is sent, `lanes/<submission>/results.jsonl` the moment that the provider is done.
"""

from collections.abc import Iterable, Iterator

import msgspec

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.provider import ProviderBatch
from batchrouter.server.storage.objects import Objects

__all__ = ["Sent", "lines", "result_lines", "results_key", "store", "unanswered"]


class _StoredItem(msgspec.Struct, gc=False):
    n: int
    endpoint: str
    body: msgspec.Raw
    cap: int


_decode_item = msgspec.json.Decoder(_StoredItem).decode
_encode = msgspec.json.Encoder().encode


def store(objects: Objects, key: str, items: Iterable[LaneItem]) -> tuple[int, int]:
    """Keep a submission's items, durably; returns their number and the bytes of their bodies."""
    stored: list[bytes] = []
    size_bytes = 0
    for item in items:
        kept = _StoredItem(
            item.sequence_no, item.endpoint, msgspec.Raw(item.body), item.max_output_tokens
        )
        stored.append(_encode(kept) + b"\n")
        size_bytes += len(item.body)
    objects.put(f"lanes/{key}/items.jsonl", stored)
    return len(stored), size_bytes


def lines(api: ProviderBatch, objects: Objects, key: str, intent: str) -> list[bytes]:
    """Write the provider's lines, of those items that one batch of it can hold."""
    written: list[bytes] = []
    sent = Sent(api)
    # Split at line feeds alone: text may hold other line ends, such as U+2028.
    stored = b"".join(objects.stream(f"lanes/{key}/items.jsonl"))
    for line in filter(None, stored.split(b"\n")):
        read = _decode_item(line)
        item = LaneItem(read.n, read.endpoint, bytes(read.body), read.cap)
        if sent.why_not(item) is None:
            written.append(api.line(f"{intent}-{read.n}", item))
    return written


def results_key(key: str) -> str:
    """Name the object with a submission's results."""
    return f"lanes/{key}/results.jsonl"


def result_lines(objects: Objects, key: str) -> Iterator[bytes]:
    """Read the stored results, line by line; empty lines are passed over."""
    rest = b""
    for block in objects.stream(results_key(key)):
        *whole, rest = (rest + block).split(b"\n")
        yield from filter(None, whole)
    if rest:
        yield rest


class Sent:
    """Tells which items, looked at in order, go into one provider batch.

    It has one endpoint, and must stay under the provider's limits; a chunk is far smaller, so
    that only a configured limit is ever met.
    """

    def __init__(self, api: ProviderBatch) -> None:
        self._api = api
        self._endpoint: str | None = None
        self._count = 0
        self._bytes = 0

    def why_not(self, item: LaneItem) -> LaneAnswer | None:
        """Return the answer of an item that is left out; None for one that is sent."""
        try:
            line = self._api.line("x" * 40, item)
        except ValueError as wrong:
            return LaneAnswer(None, error_code="invalid_input", error_message=str(wrong))
        self._endpoint = self._endpoint or item.endpoint
        limits, size_bytes = self._api.limits, len(line) + 1
        if size_bytes > limits.bytes:
            told = f"the request has {size_bytes:,} bytes; the provider takes {limits.bytes:,}"
            return LaneAnswer(None, error_code="invalid_input", error_message=told)
        if (
            item.endpoint != self._endpoint
            or self._count == limits.items
            or self._bytes + size_bytes > limits.bytes
        ):
            told = "the item waits for another batch of the provider"
            return LaneAnswer(
                None, error_code="provider_error", error_message=told, is_retryable=True
            )
        self._count += 1
        self._bytes += size_bytes
        return None


def unanswered(*, was_cut_short: bool) -> LaneAnswer:
    """Say of an item that it was sent and that the results lack it."""
    if was_cut_short:
        told = "the provider ended its batch before this item"
        return LaneAnswer(
            None, error_code="provider_timeout", error_message=told, is_retryable=True
        )
    # It may have been billed: only whoever pays decides to buy it again.
    told = "the provider's results lack this item"
    return LaneAnswer(None, error_code="provider_error", error_message=told)
