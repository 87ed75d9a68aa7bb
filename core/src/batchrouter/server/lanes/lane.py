"""What every lane is to the engine: submissions that are found again, and answers in order.

The engine gives each submission a key of its own. `Lane.submit` writes it down, `Lane.poll` carries
it on, step by step: what talks to a provider happens there, and each step is written down before
and after. After a crash `Lane.find` tells that the lane has the submission, and polling goes on.
What a lane cannot know to have been sent once shows in the receipt as ``possibly_repeated``.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

__all__ = ["ERROR_CODES", "Lane", "LaneAnswer", "LaneItem", "LaneProgress"]

#: Item error codes that a lane may answer with (contract section 6).
ERROR_CODES = frozenset({
    "content_policy",
    "context_length_exceeded",
    "invalid_input",
    "provider_error",
    "provider_timeout",
    "rate_limited",
})


class LaneItem(msgspec.Struct, frozen=True, gc=False):
    """One request of a submission.

    Attributes:
        sequence_no: The item's place in the manifest, from 0; the only id that a lane may show
            to its provider (customers' ids never leave the router).
        endpoint: ``/v1/chat/completions``, ``/v1/responses`` or ``/v1/embeddings``.
        body: The request as JSON, without a model.
        max_output_tokens: The cap that the price was locked with.
        attempt: 1 for the first try of this item.
    """

    sequence_no: int
    endpoint: str
    body: bytes
    max_output_tokens: int
    attempt: int = 1


class LaneAnswer(msgspec.Struct, frozen=True, gc=False):
    """What became of one item.

    Attributes:
        body: The provider's body as JSON, or None for a failure.
        input_tokens: Billed input tokens; 0 for a failure that was not billed.
        output_tokens: Billed output tokens.
        error_code: One of `ERROR_CODES`, or None.
        error_message: For a person; never holds the request.
        is_retryable: True when the same request may succeed later (429, 5xx, timeout); what was
            billed is not tried again all the same.
    """

    body: bytes | None
    input_tokens: int = 0
    output_tokens: int = 0
    error_code: str | None = None
    error_message: str = ""
    is_retryable: bool = False


class LaneProgress(msgspec.Struct, frozen=True):
    """How far a submission is.

    Attributes:
        is_finished: True when `Lane.collect` will yield an answer for each item, and when there
            is a refusal.
        next_poll_s: Seconds after which asking again makes sense; 0 when finished.
        refusal: Why the provider took nothing of it; there is nothing to collect then.
        gave_way: True when the provider ended it before its end: what it left unanswered goes to
            the next lane.
        possibly_repeated: Items that may have been sent to the provider more than once.
    """

    is_finished: bool
    next_poll_s: float = 0.0
    refusal: LaneAnswer | None = None
    gave_way: bool = False
    possibly_repeated: int = 0


class Lane(Protocol):
    """One provider and model in one region. Methods block; the engine calls them in threads.

    Attributes:
        provider: The provider's name, as artifacts show it.
        model: What the provider calls the model, as artifacts show it.
        is_local: True when `poll` never waits for a network.
        remembers: True when `find` is certain to tell what the provider has accepted.
        retry_first_s: Mean wait before the first retry of an item; each next one is doubled.
    """

    provider: str
    model: str
    is_local: bool
    remembers: bool
    retry_first_s: float

    def worst_case(self, item: LaneItem) -> tuple[int, int]:
        """Return the most input and output tokens that the lane can bill for an item.

        A lane that cannot know more than the contract does (section 5) answers the bytes of the
        body and the item's output cap.
        """
        ...

    def find(self, key: str) -> str | None:
        """Return the handle of the submission with this key, if the lane has it."""
        ...

    def submit(self, key: str, items: Iterable[LaneItem]) -> str:
        """Take the items over and return the submission's handle.

        Raises:
            ConnectionError: The lane takes nothing now; nothing was accepted.
        """
        ...

    def poll(self, handle: str) -> LaneProgress:
        """Carry the submission on, and say how far it is.

        Raises:
            ConnectionError: The provider did not answer a question; nothing has changed.
        """
        ...

    def collect(self, handle: str, items: Iterable[LaneItem]) -> Iterator[LaneAnswer]:
        """Yield one answer for each item, in the order of ``items`` (the same as submitted).

        May be called again: it costs nothing and yields the same answers.
        """
        ...

    def cancel(self, handle: str) -> None:
        """Ask the provider to stop; what it has finished is still collected and billed."""
        ...

    def forget(self, batch_id: str) -> None:
        """Delete what was kept for the submissions of a batch that has ended."""
        ...

    def close(self) -> None:
        """Let go of threads and connections; the router is stopping."""
        ...
