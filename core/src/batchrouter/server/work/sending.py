"""One chunk at the lanes: sent, polled, collected, retried, handed to the fallback lane.

Each submission has a key that is made of the batch, the chunk, the lane and the try. After a
crash the lane is asked for the key before anything is sent, so that what it has accepted is
collected and not sent again; the same answers then lead through the same tries.

While a chunk waits for its lane it holds no lines: they are read again when the answers are
there, so that memory grows with the steps that compute and not with those that wait.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from batchrouter import killpoints
from batchrouter.server.lanes.lane import Lane, LaneAnswer, LaneProgress
from batchrouter.server.quoting.pricing import with_fee
from batchrouter.server.storage.clock import now_us, rfc3339
from batchrouter.server.work.lines import ArtifactWriter, ItemLine, Terms
from batchrouter.server.work.results import ChunkSummary
from batchrouter.server.work.shop import Shop

__all__ = ["MAX_ATTEMPTS", "ChunkSender", "SubmissionKey"]

#: One try and 8 retries (contract section 6).
MAX_ATTEMPTS = 9

#: Tries in a row without a single answer after which a lane gives way to the next one.
TRIES_BEFORE_FALLBACK = 2

MAX_RETRY_WAIT_S = 60.0
#: A lane that sleeps is looked after this often, so that a cancel is heard.
MAX_POLL_WAIT_S = 1.0
#: How long a provider's own cancel may take (contract section 5).
MAX_CANCEL_S = 30 * 60.0


#: A provider that does not answer a question is asked again after this long.
UNANSWERED_POLL_S = 5.0

_UNANSWERED = {
    "cancelled": "the batch was cancelled before this item was answered",
    "expired": "the deadline passed before this item was answered",
}


@dataclass(frozen=True, slots=True)
class SubmissionKey:
    """Names one try of one chunk at one lane, for the provider's memory."""

    batch_id: str
    number: int
    lane: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.batch_id}/{self.number}/{self.lane}/{self.attempt}"


class ChunkSender:
    """Carries one claimed chunk to its end.

    Args:
        shop: Pulse and bench are used.
        batch_id: The batch.
        number: The chunk's number.
        load: Reads the chunk's lines, the same each time, and not none.
        first_item: The first line's place in the manifest.
        item_count: How many lines there are.
        lanes: The chunk's own lane, then the fallback order.
        terms: The locked price, whichever lane runs.
        writer: Writes the artifact lines.
        to_output: Turns a provider's body into the item's output, or raises ValueError.
        why_stop: Tells why items that are not answered yet must not be sent again:
            ``cancelled`` or ``expired``, or None.
        is_again: True when a former process may have sent the chunk already.
    """

    def __init__(
        self,
        shop: Shop,
        batch_id: str,
        number: int,
        *,
        load: Callable[[], list[ItemLine]],
        first_item: int,
        item_count: int,
        lanes: list[Lane],
        terms: Terms,
        writer: ArtifactWriter,
        to_output: Callable[[bytes], bytes],
        why_stop: Callable[[], str | None],
        is_again: bool = False,
    ) -> None:
        self._shop = shop
        self._batch_id = batch_id
        self._number = number
        self._load = load
        self._lanes = lanes
        self._terms = terms
        self._writer = writer
        self._to_output = to_output
        self._why_stop = why_stop
        self._first = first_item
        self._written: list[bytes] = [b""] * item_count
        self._last_error: dict[int, LaneAnswer] = {}
        self._position = 0
        self._tries = 0
        self._is_again = is_again
        self.summary = ChunkSummary(first_item=first_item, item_count=item_count)
        self.is_degraded = False

    def run(self) -> list[bytes]:
        """Return one artifact line for each item, in order; `summary` has the sums.

        Raises:
            Suspended: The router is stopping; nothing is lost.
        """
        pending = list(range(len(self._written)))
        fruitless = 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            before = len(pending)
            pending = self._try(pending, attempt)
            if not pending:
                break
            fruitless = fruitless + 1 if len(pending) == before else 0
            if fruitless >= TRIES_BEFORE_FALLBACK and self._give_way():
                fruitless = 0
            if attempt == MAX_ATTEMPTS or not self._pause(attempt):
                break
        self._give_up(pending)
        self.summary.provider = self._lane.provider
        self.summary.model = self._lane.model
        return self._written

    def _give_way(self) -> bool:
        """Let the next lane take over; False when there is none."""
        if self._position + 1 >= len(self._lanes):
            return False
        self._position += 1
        self.is_degraded = True
        return True

    @property
    def _lane(self) -> Lane:
        return self._lanes[self._position]

    def _key(self, attempt: int) -> str:
        return str(SubmissionKey(self._batch_id, self._number, self._position, attempt))

    def _try(self, pending: list[int], attempt: int) -> list[int]:
        """Send the lines at these places, and return those that are worth another try."""
        bench, lane, key = self._shop.bench, self._lane, self._key(attempt)
        handle, left = bench.do(lambda: self._hand_over(lane, key, pending, attempt))
        if handle is None or left is not None:
            return pending if left is None else left
        progress = self._wait_for(lane, handle)
        if progress is None:
            return pending
        self.summary.possibly_repeated += progress.possibly_repeated
        if progress.refusal is not None:
            self._note_refusal(pending, progress.refusal)
            return pending
        left = bench.do(lambda: self._collect(lane, handle, self._pick(pending, attempt)))
        if left and progress.gave_way:
            self._give_way()
        return left

    def _hand_over(
        self, lane: Lane, key: str, pending: list[int], attempt: int
    ) -> tuple[str | None, list[int] | None]:
        """Return the submission's handle, and what is left if its answers are there at once."""
        lines = self._pick(pending, attempt)
        handle = lane.find(key)
        if handle is not None:
            self._tries = attempt
        elif not self._was_passed(attempt):
            handle = self._submit(lane, key, lines, attempt)
        # A lane that asks its provider would hold up the others who compute.
        if handle is None or not lane.is_local or not lane.poll(handle).is_finished:
            return handle, None
        return handle, self._collect(lane, handle, lines)

    def _was_passed(self, attempt: int) -> bool:
        """Tell whether a later try was accepted before a crash.

        Then this one was refused at the time: a lane that has recovered since must not be sent
        what another one has already taken.
        """
        if not self._is_again:
            return False
        return any(
            lane.find(str(SubmissionKey(self._batch_id, self._number, position, later)))
            for position, lane in enumerate(self._lanes)
            if position >= self._position
            for later in range(attempt + 1, MAX_ATTEMPTS + 1)
        )

    def _pick(self, pending: list[int], attempt: int) -> list[ItemLine]:
        lines = self._load()
        if attempt == 1:
            return lines
        picked = [lines[place] for place in pending]
        for line in picked:
            line.item = msgspec.structs.replace(line.item, attempt=attempt)
        return picked

    def _submit(self, lane: Lane, key: str, lines: list[ItemLine], attempt: int) -> str | None:
        """Hand the lines over; None when nothing was accepted, or nothing may be sent."""
        if self._why_stop() is not None:
            return None
        self._tries = attempt
        killpoints.reached("work.before_send")
        self._shop.database.check_fresh()
        try:
            handle = lane.submit(key, (line.item for line in lines))
        except ConnectionError as error:
            refused = LaneAnswer(
                None, error_code="provider_error", error_message=str(error), is_retryable=True
            )
            self._note_refusal([line.item.sequence_no - self._first for line in lines], refused)
            return None
        killpoints.reached("work.after_send")
        return handle

    def _note_refusal(self, places: list[int], refusal: LaneAnswer) -> None:
        self._last_error = dict.fromkeys(places, refusal)

    def _collect(self, lane: Lane, handle: str, lines: list[ItemLine]) -> list[int]:
        completed_at = rfc3339(now_us())
        answers = lane.collect(handle, (line.item for line in lines))
        return [
            line.item.sequence_no - self._first
            for line, answer in zip(lines, answers, strict=True)
            if not self._take(line, answer, completed_at)
        ]

    def _wait_for(self, lane: Lane, handle: str) -> LaneProgress | None:
        """Poll until the submission has ended; None when a cancelled one never does."""
        give_up_at: float | None = None
        poll_at = 0.0
        while True:
            if time.monotonic() >= poll_at:
                progress = _poll(lane, handle)
                poll_at = time.monotonic() + progress.next_poll_s
                if progress.is_finished:
                    return progress
            if give_up_at is None and self._why_stop() is not None:
                lane.cancel(handle)
                give_up_at = time.monotonic() + MAX_CANCEL_S
                poll_at = 0.0
                continue
            if give_up_at is not None and time.monotonic() > give_up_at:
                return None
            left_s = poll_at - time.monotonic()
            self._shop.pulse.wait(min(MAX_POLL_WAIT_S, max(0.01, left_s)))

    def _pause(self, attempt: int) -> bool:
        """Wait before the next try; False when there shall be none."""
        if self._was_passed(attempt):
            return True  # it was made already, before a crash
        mean_s = min(MAX_RETRY_WAIT_S, self._lane.retry_first_s * 2.0 ** (attempt - 1))
        ready_at = time.monotonic() + mean_s * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, hides nothing
        while (left_s := ready_at - time.monotonic()) > 0:
            if self._why_stop() is not None:
                return False
            self._shop.pulse.wait(min(MAX_POLL_WAIT_S, left_s))
        return self._why_stop() is None

    def _take(self, line: ItemLine, answer: LaneAnswer, completed_at: str) -> bool:
        """Write an item's line; False when the item is worth another try."""
        place, attempt = line.item.sequence_no - self._first, line.item.attempt
        if answer.body is None:
            is_billed = answer.input_tokens > 0 or answer.output_tokens > 0
            # The price cap has room for one bill an item.
            if answer.is_retryable and not is_billed and attempt < MAX_ATTEMPTS:
                self._last_error[place] = answer
                return False
            self._written[place] = self._fail(line, answer, completed_at)
            return True
        try:
            output = self._to_output(answer.body)
        except ValueError as wrong:
            answer = msgspec.structs.replace(
                answer, body=None, error_code="provider_error", error_message=str(wrong)
            )
            self._written[place] = self._fail(line, answer, completed_at)
            return True
        self._bill(answer)
        self.summary.completed += 1
        self._written[place] = self._writer.completed(
            line,
            answer,
            body=output,
            provider=self._lane.provider,
            model=self._lane.model,
            attempt=attempt,
            terms=self._terms,
            completed_at=completed_at,
        )
        return True

    def _fail(self, line: ItemLine, answer: LaneAnswer, completed_at: str) -> bytes:
        self.summary.failed += 1
        self._bill(answer)
        subtotal = self._terms.subtotal(answer.input_tokens, answer.output_tokens)
        return self._writer.failed(
            line,
            answer.error_code or "provider_error",
            answer.error_message,
            provider=self._lane.provider,
            model=self._lane.model,
            attempt=line.item.attempt,
            completed_at=completed_at,
            cost_units=with_fee(subtotal, self._terms.fee_bps),
            usage=(answer.input_tokens, answer.output_tokens),
        )

    def _bill(self, answer: LaneAnswer) -> None:
        self.summary.input_tokens += answer.input_tokens
        self.summary.output_tokens += answer.output_tokens
        self.summary.cost_units += self._terms.subtotal(answer.input_tokens, answer.output_tokens)

    def _give_up(self, pending: list[int]) -> None:
        """End what got no answer: cancelled, expired, or with the error that it got last."""
        if not pending:
            return
        reason = self._why_stop()
        completed_at = rfc3339(now_us())
        lines = self._shop.bench.do(self._load)
        if reason == "cancelled":
            self.summary.cancelled += len(pending)
        else:
            self.summary.failed += len(pending)
        if reason == "expired":
            self.summary.expired += len(pending)
        for place in pending:
            last = self._last_error.get(place)
            if reason is not None:
                code, message = reason, _UNANSWERED[reason]
            else:
                code = (last.error_code if last else None) or "provider_timeout"
                message = last.error_message if last else "the provider gave no answer"
            self._written[place] = self._writer.failed(
                lines[place],
                code,
                message,
                provider=self._lane.provider,
                model=self._lane.model,
                attempt=self._tries,
                completed_at=completed_at,
            )


def _poll(lane: Lane, handle: str) -> LaneProgress:
    try:
        return lane.poll(handle)
    except ConnectionError:
        return LaneProgress(is_finished=False, next_poll_s=UNANSWERED_POLL_S)
