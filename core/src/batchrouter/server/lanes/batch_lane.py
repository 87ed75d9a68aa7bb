"""A lane over a provider's batch API: each chunk is bought there once, whatever is lost on the way.

`BatchLane.poll` carries a submission on by one step (see `book.py` for its states). Before a
create is sent, the intent stands in the book, with the id that the provider's batch will bear and
with the input file that belongs to it alone. What became of a create whose reply was lost is
asked of the provider (`reconciling.py`), and nothing else is sent for the chunk until that is
known. Results are stored the moment that they are ready.
"""

import logging
import math
import secrets
from collections.abc import Iterable, Iterator

from batchrouter import killpoints
from batchrouter.server.lanes import parcel
from batchrouter.server.lanes.book import Book, Room, Submission, trouble_json
from batchrouter.server.lanes.health import LaneHealth
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem, LaneProgress
from batchrouter.server.lanes.provider import (
    ProviderBatch,
    ProviderRefusedError,
    ProviderSilentError,
    ProviderUnreachableError,
)
from batchrouter.server.lanes.reconciling import Verdict, reconcile
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.objects import Objects

__all__ = ["BatchLane"]

_log = logging.getLogger(__name__)

#: Estimate of input tokens for limits on what is queued; English JSON has about 4.5.
_BYTES_PER_TOKEN = 4
#: How long a provider that cannot be reached, or that is busy, is tried before the next lane.
GIVE_UP_AFTER_S = 15 * 60.0
#: How long a batch that was just created may be unknown to the provider (seen with Anthropic).
UNKNOWN_FOR_S = 10 * 60.0
_FIRST_BACKOFF_S = 5.0
_MAX_BACKOFF_S = 15 * 60.0
#: A queue that stays full for so many creates is not waited for any longer.
MAX_CREATES = 40
_HELD_POLL_S = 30.0
#: A full queue is tried again after this long, doubled each time.
FULL_QUEUE_FIRST_S = 30.0
_US = 1_000_000
_NOT_FOUND = 404
_TOO_MANY = 429


class BatchLane:
    """One model of a provider with a batch API; `lane.Lane` has the methods.

    Args:
        provider: The lane's name.
        model: The provider's name of the model.
        api: The provider's wire.
        book: What was handed over.
        health: Told of each outcome.
        objects: Where items and results are kept while they are needed.
        tokens_per_byte: The most input tokens that a byte can cost.
        settle_s: How long a lost create is looked for before it is called lost.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        api: ProviderBatch,
        book: Book,
        *,
        objects: Objects,
        health: LaneHealth,
        tokens_per_byte: float = 1.0,
        settle_s: float = 600.0,
    ) -> None:
        self.provider = provider
        self.model = model
        self.is_local = False
        self.remembers = True
        self.retry_first_s = 15.0
        self._api = api
        self._book = book
        self._objects = objects
        self._health = health
        self._tokens_per_byte = tokens_per_byte
        self._settle_s = settle_s

    def worst_case(self, item: LaneItem) -> tuple[int, int]:
        """Every byte a token, if not configured otherwise, and the whole output cap."""
        return math.ceil(len(item.body) * self._tokens_per_byte), item.max_output_tokens

    def find(self, key: str) -> str | None:
        """Return the key itself, which is the handle, if the book has it."""
        return None if self._book.find(key) is None else key

    def submit(self, key: str, items: Iterable[LaneItem]) -> str:
        """Store the items and enter them in the book; `poll` sends them."""
        count, size_bytes = parcel.store(self._objects, key, items)
        self._book.add(key, item_count=count, input_tokens=size_bytes // _BYTES_PER_TOKEN)
        return key

    def poll(self, handle: str) -> LaneProgress:
        """Carry the submission on by one step.

        Raises:
            ConnectionError: The provider did not answer; nothing has changed.
        """
        submission = self._book.find(handle)
        if submission is None:
            raise LookupError(f"{self.provider} has no submission {handle}")
        match submission.state:
            case "prepared":
                self._send(submission)
            case "intended":
                # The process that sent it died before it could tell what came of it.
                self._book.move(handle, ["intended"], "unsettled", next_at=0)
            case "unsettled":
                self._settle(submission)
            case "accepted":
                self._watch(submission)
            case "held" | "collected" | "refused":
                pass
        return self._progress(handle)

    def _progress(self, handle: str) -> LaneProgress:
        submission = self._book.find(handle)
        if submission is None:
            raise LookupError(f"{self.provider} has no submission {handle}")
        match submission.state:
            case "collected":
                return LaneProgress(is_finished=True, gave_way=submission.gave_way)
            case "refused":
                return LaneProgress(is_finished=True, refusal=submission.trouble)
            case "held":
                return LaneProgress(is_finished=False, next_poll_s=_HELD_POLL_S)
            case "accepted":
                return LaneProgress(is_finished=False, next_poll_s=self._api.poll_s)
            case "prepared" | "intended" | "unsettled":
                left_s = max(0.0, (submission.next_at - now_us()) / _US)
                return LaneProgress(is_finished=False, next_poll_s=min(self._api.poll_s, left_s))

    def collect(self, handle: str, items: Iterable[LaneItem]) -> Iterator[LaneAnswer]:
        """Read the stored results; what they lack is worth another try where it was cut short."""
        submission = self._book.find(handle)
        if submission is None or submission.state != "collected":
            raise LookupError(f"{self.provider} has no results of {handle}")
        intent = submission.intent or ""
        found: dict[str, bytes] = {}
        for line in parcel.result_lines(self._objects, handle):
            item_id = self._api.item_id(line)
            if item_id is not None:
                # The first one counts: it is what was worked on first.
                found.setdefault(item_id, line)
        asked = list(items)
        lines = [found.get(parcel.item_id(intent, item)) for item in asked]
        # Packed again only to tell what was never sent from what came back without an answer.
        left_out = parcel.pack(self._api, intent, asked).left_out if None in lines else {}
        for item, line in zip(asked, lines, strict=True):
            if line is not None:
                yield self._api.answer(line, item)
            else:
                yield left_out.get(item.sequence_no) or parcel.unanswered(
                    was_cut_short=submission.gave_way
                )

    def cancel(self, handle: str) -> None:
        """Stop it where it is: before it is sent, or by asking the provider."""
        self._book.note(handle, ["prepared", "intended", "unsettled", "accepted"], is_cancelled=1)

    def forget(self, batch_id: str) -> None:
        """Delete the items and results of a batch that has ended; the book's rows stay."""
        for key in list(self._objects.keys(f"lanes/{batch_id}")):
            self._objects.delete(key)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _send(self, submission: Submission) -> None:
        key = submission.key
        if submission.is_cancelled:
            self._refuse(key, "provider_error", "it was cancelled before it was sent")
            return
        if now_us() < submission.next_at:
            return
        room = Room(self._api.limits.enqueued_tokens, alone=self._api.reconciles == "count")
        if not self._book.has_room(key, room):
            self._book.note(key, ["prepared"], next_at=_later(self._api.poll_s))
            return
        intent = secrets.token_hex(12)
        lines = parcel.pack(self._api, intent, parcel.stored_items(self._objects, key)).lines
        if not lines:
            self._objects.put(parcel.results_key(key), [])
            self._book.move(key, ["prepared"], "collected", intent=intent)
            return
        self._book.note(key, ["prepared"], item_count=len(lines))
        uploaded = self._upload(submission, intent, lines)
        if uploaded is None:
            return
        input_file, intended_at = uploaded
        if self._book.intend(
            key, room, intent=intent, intended_at=intended_at, input_file=input_file
        ):
            killpoints.reached("lanes.after_intent")
            self._create(submission, intent, input_file, lines)

    def _upload(
        self, submission: Submission, intent: str, lines: list[bytes]
    ) -> tuple[str | None, int] | None:
        """Return the input file and the provider's time; None when it waits or is refused."""
        try:
            killpoints.reached("lanes.before_upload")
            input_file = self._api.upload(intent, lines)
            killpoints.reached("lanes.after_upload")
            # By the provider's clock, from an answer that came before the create.
            return input_file, self._api.now_us()
        except ProviderRefusedError as refusal:
            self._take_refusal(submission, refusal)
        except (ProviderSilentError, ProviderUnreachableError) as error:
            # Nothing is bought by a file.
            self._back_off(submission, str(error))
        return None

    def _create(
        self, submission: Submission, intent: str, input_file: str | None, lines: list[bytes]
    ) -> None:
        key = submission.key
        try:
            killpoints.reached("lanes.before_create")
            self._book.check_fresh()
            killpoints.reached("lanes.mid_create")
        except ConnectionError:
            # It was not sent. Where the lease is lost the book stays, and who took over asks.
            self._book.move(key, ["intended"], "prepared", input_file=None)
            raise
        try:
            batch = self._api.create(intent, input_file, lines)
            killpoints.reached("lanes.after_create")
        except ProviderUnreachableError as error:
            # No connection came about, so nothing was bought.
            self._book.move(key, ["intended"], "prepared", input_file=None)
            self._back_off(submission, str(error))
        except ProviderRefusedError as refusal:
            self._book.move(key, ["intended"], "prepared", input_file=None)
            self._take_refusal(submission, refusal)
        except ProviderSilentError as error:
            _log.warning("%s: a create got no reply: %s", self.provider, error)
            self._health.failed(str(error))
            self._book.move(key, ["intended"], "unsettled", next_at=0)
        else:
            self._book.move(key, ["intended"], "accepted", provider_batch=batch)
            self._health.succeeded()
            killpoints.reached("lanes.after_accepted")

    def _settle(self, submission: Submission) -> None:
        if now_us() < submission.next_at:
            return
        verdict, batch = reconcile(
            self._api, submission, self._book.owned(), settle_s=self._settle_s
        )
        key = submission.key
        match verdict:
            case Verdict.FOUND:
                self._book.move(key, ["unsettled"], "accepted", provider_batch=batch)
            case Verdict.NEVER_BOUGHT:
                self._book.move(key, ["unsettled"], "prepared", input_file=None, next_at=0)
            case Verdict.UNKNOWN:
                self._hold(key, "a create got no reply, and the provider's list does not tell")
            case Verdict.TOO_EARLY:
                pause_s = min(self._api.poll_s, self._settle_s / 20)
                self._book.note(key, ["unsettled"], next_at=_later(pause_s))

    def _hold(self, key: str, why: str) -> None:
        _log.error("%s: %s is held: %s (batchrouter lanes reconcile)", self.provider, key, why)
        told = trouble_json("provider_error", why, is_retryable=False)
        self._book.move(key, ["unsettled", "accepted"], "held", trouble=told)

    def _watch(self, submission: Submission) -> None:
        key, batch = submission.key, submission.provider_batch or ""
        try:
            if submission.is_cancelled:
                self._ask_to_cancel(batch)
            report = self._api.report(batch)
        except ProviderRefusedError as refusal:
            if refusal.status != _NOT_FOUND:
                raise ConnectionError(str(refusal)) from None
            if now_us() > submission.updated_at + int(UNKNOWN_FOR_S * _US):
                self._hold(key, f"the provider no longer knows the batch {batch}")
            return
        if report.state == "working":
            return
        if report.state == "failed":
            self._take_failure(submission, report.code, report.message, report.is_queue_full)
            return
        self._store_results(submission, batch, was_cut_short=report.was_cut_short)

    def _ask_to_cancel(self, batch: str) -> None:
        try:
            self._api.cancel(batch)
        except ProviderRefusedError:
            return  # it has ended, or is being cancelled already: its report tells

    def _take_failure(self, submission: Submission, code: str, message: str, full: bool) -> None:  # noqa: FBT001 - of a report
        key = submission.key
        if full and submission.creates < MAX_CREATES:
            # Nothing was run and nothing billed: it waits for the queue, like one that never left.
            again = _later(_backoff_s(submission.creates))
            self._book.move(
                key, ["accepted"], "prepared", provider_batch=None, input_file=None, next_at=again
            )
            return
        told = trouble_json("provider_error", f"{code}: {message}".strip(": "), is_retryable=True)
        self._book.move(key, ["accepted"], "refused", trouble=told)

    def _store_results(self, submission: Submission, batch: str, *, was_cut_short: bool) -> None:
        key = submission.key
        try:
            killpoints.reached("lanes.before_results_stored")
            self._objects.put(parcel.results_key(key), self._api.results(batch))
            killpoints.reached("lanes.after_results_stored")
        except ProviderRefusedError as refusal:
            if now_us() > submission.updated_at + int(UNKNOWN_FOR_S * _US):
                self._hold(key, f"the results of the batch {batch} cannot be read: {refusal}")
            return
        if self._api.reconciles == "count" and not self._bear_intent(submission):
            self._book.note(key, ["accepted"], provider_batch=None)
            self._hold(key, f"the batch {batch} was found by its count, and holds other items")
            return
        self._book.move(key, ["accepted"], "collected", gave_way=int(was_cut_short))
        self._health.took((now_us() - submission.created_at) / _US)

    def _bear_intent(self, submission: Submission) -> bool:
        prefix = f"{submission.intent}-"
        ids = (
            self._api.item_id(line) for line in parcel.result_lines(self._objects, submission.key)
        )
        return all(item_id is None or item_id.startswith(prefix) for item_id in ids)

    def _take_refusal(self, submission: Submission, refusal: ProviderRefusedError) -> None:
        if refusal.status == _TOO_MANY:
            self._back_off(submission, str(refusal), refusal.retry_after_s)
            return
        self._health.failed(str(refusal))
        self._refuse(submission.key, "provider_error", str(refusal))

    def _back_off(
        self, submission: Submission, told: str, retry_after_s: float | None = None
    ) -> None:
        self._health.failed(told)
        waited_s = (now_us() - submission.created_at) / _US
        if waited_s > GIVE_UP_AFTER_S:
            self._refuse(submission.key, "provider_error", told)
            return
        # Doubled with the time that it has taken so far, which survives a restart.
        pause_s = max(_FIRST_BACKOFF_S, waited_s) if retry_after_s is None else retry_after_s
        again = _later(min(_MAX_BACKOFF_S, pause_s))
        self._book.note(submission.key, ["prepared"], next_at=again)

    def _refuse(self, key: str, code: str, message: str) -> None:
        told = trouble_json(code, message, is_retryable=True)
        self._book.move(key, ["prepared"], "refused", trouble=told)


def _later(pause_s: float) -> int:
    return now_us() + int(pause_s * _US)


def _backoff_s(tries: int) -> float:
    return min(_MAX_BACKOFF_S, FULL_QUEUE_FIRST_S * 2.0 ** min(tries - 1, 10))
