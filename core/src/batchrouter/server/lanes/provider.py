"""What a provider with a batch API is to a lane: one small protocol, one module for each.

An adapter speaks one wire and decides nothing. `batch_lane.BatchLane` decides what is sent and
when, and writes it down first. No method repeats a request by itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem

__all__ = [
    "Candidate",
    "ProviderBatch",
    "ProviderLimits",
    "ProviderRefusedError",
    "ProviderSilentError",
    "ProviderUnreachableError",
    "Reconciles",
    "Report",
]

Reconciles = Literal["metadata+file", "count"]
"""How a create whose reply was lost is found again.

``metadata+file``: the listed batch bears the intent's id in its metadata and names its input file;
a file that is deleted keeps a late create from being worked on. ``count``: the list tells no
more than a time and a number of items; the items' ids tell it for certain, once there are results.
"""


class ProviderUnreachableError(ConnectionError):
    """No connection came about: the request was never sent."""


class ProviderSilentError(ConnectionError):
    """The request was sent, and no reply says what came of it (reset, timeout, 408, 409, 5xx).

    Attributes:
        status: The HTTP status, or None when there was no reply.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ProviderRefusedError(Exception):
    """The provider said no: nothing came of the request.

    Attributes:
        status: The HTTP status.
        code: The provider's own error code or type, or an empty text.
        retry_after_s: What it asks to wait, or None.
    """

    def __init__(
        self, message: str, *, status: int, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """What one provider batch may hold.

    Attributes:
        items: Requests.
        bytes: Of the whole input.
        enqueued_tokens: Input tokens of a model that may be queued at a time; None: no limit.
    """

    items: int
    bytes: int
    enqueued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch of the provider's list.

    Attributes:
        created_at: Microseconds since 1970 UTC, by the provider's clock.
        intent: What its metadata names, or None.
        input_file: Its input file, or None.
        item_count: How many requests it holds; None while the provider does not say.
    """

    id: str
    created_at: int
    intent: str | None = None
    input_file: str | None = None
    item_count: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a provider says of a batch.

    Attributes:
        state: `working`; `ended`, when there may be results; `failed`, when nothing was run.
        is_queue_full: A failure that only says that too much is queued (reported late).
        was_cut_short: It ended before its end: expired, or cancelled.
        message: The provider's own words about a failure.
    """

    state: Literal["working", "ended", "failed"]
    is_queue_full: bool = False
    was_cut_short: bool = False
    code: str = ""
    message: str = ""


class ProviderBatch(Protocol):
    """A provider's batch API for one model.

    Every method may raise `ProviderUnreachableError`, `ProviderSilentError` or
    `ProviderRefusedError`.

    Attributes:
        reconciles: See `Reconciles`.
        limits: See `ProviderLimits`.
        poll_s: How often it makes sense to ask for a batch.
    """

    reconciles: Reconciles
    limits: ProviderLimits
    poll_s: float

    def now_us(self) -> int:
        """Ask the provider for its time, by the `Date` of an answer that changes nothing."""
        ...

    def line(self, item_id: str, item: LaneItem) -> bytes:
        """Write an item as the provider takes it, without a line end.

        Raises:
            ValueError: It has no such request; the message is for the item's owner.
        """
        ...

    def upload(self, intent: str, lines: Iterable[bytes]) -> str | None:
        """Upload the input; returns the file's id, or None where there are no files."""
        ...

    def create(self, intent: str, input_file: str | None, lines: Iterable[bytes]) -> str:
        """Buy: create the batch and return its id. Sent once, whatever happens."""
        ...

    def listed(self, since_us: int) -> Iterator[Candidate]:
        """Page the account's batches back to a time, newest first."""
        ...

    def delete_file(self, input_file: str) -> None:
        """Delete an input file; one that is not there is deleted already."""
        ...

    def report(self, batch_id: str) -> Report:
        """Ask how a batch is."""
        ...

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Read all result lines of an ended batch, of successes and failures, in blocks."""
        ...

    def item_id(self, line: bytes) -> str | None:
        """Read the id of a result line; None when it is no such line."""
        ...

    def answer(self, line: bytes, item: LaneItem) -> LaneAnswer:
        """Read a result line as the answer to an item, in the dialect that the item asked in."""
        ...

    def cancel(self, batch_id: str) -> None:
        """Ask the provider to stop a batch."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
