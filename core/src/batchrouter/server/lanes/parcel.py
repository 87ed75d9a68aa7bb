"""What of a chunk goes into one provider batch, how it is kept until then, and its results.

Items and results are objects beside the manifests: `lanes/<submission>/items.jsonl` before anything
is sent, `lanes/<submission>/results.jsonl` the moment that the provider is done.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.provider import ProviderBatch
from batchrouter.server.storage.objects import Objects

__all__ = [
    "Packed",
    "item_id",
    "pack",
    "result_lines",
    "results_key",
    "store",
    "stored_items",
    "unanswered",
]


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


def stored_items(objects: Objects, key: str) -> Iterator[LaneItem]:
    """Read a submission's items again."""
    # Split at line feeds alone: text may hold other line ends, such as U+2028.
    stored = b"".join(objects.stream(f"lanes/{key}/items.jsonl"))
    for line in filter(None, stored.split(b"\n")):
        read = _decode_item(line)
        yield LaneItem(read.n, read.endpoint, bytes(read.body), read.cap)


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


def item_id(intent: str, item: LaneItem) -> str:
    """Name an item to the provider: by the intent, and by its place alone."""
    return f"{intent}-{item.sequence_no}"


@dataclass(frozen=True, slots=True)
class Packed:
    """What goes into one provider batch, and what does not.

    Attributes:
        lines: The provider's lines, in the items' order.
        left_out: The answer of each item that is not sent, by its place.
    """

    lines: list[bytes]
    left_out: dict[int, LaneAnswer]


def pack(api: ProviderBatch, intent: str, items: Iterable[LaneItem]) -> Packed:
    """Write items as the provider takes them; the same items are always packed alike.

    A batch has one endpoint, and stays under the provider's limits; a chunk is far smaller, so
    that only a configured limit is ever met.
    """
    packed = Packed([], {})
    endpoint: str | None = None
    batch_bytes = 0
    for item in items:
        try:
            line = api.line(item_id(intent, item), item)
        except ValueError as wrong:
            told = LaneAnswer(None, error_code="invalid_input", error_message=str(wrong))
            packed.left_out[item.sequence_no] = told
            continue
        endpoint = endpoint or item.endpoint
        limits, size_bytes = api.limits, len(line) + 1
        if size_bytes > limits.bytes:
            told = f"the request has {size_bytes:,} bytes; the provider takes {limits.bytes:,}"
            packed.left_out[item.sequence_no] = LaneAnswer(
                None, error_code="invalid_input", error_message=told
            )
        elif (
            item.endpoint != endpoint
            or len(packed.lines) == limits.items
            or batch_bytes + size_bytes > limits.bytes
        ):
            packed.left_out[item.sequence_no] = LaneAnswer(
                None,
                error_code="provider_error",
                error_message="the item waits for another batch of the provider",
                is_retryable=True,
            )
        else:
            packed.lines.append(line)
            batch_bytes += size_bytes
    return packed


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
