"""A plain OpenAI-compatible server without a batch API: vLLM, Ollama, llama.cpp, a LiteLLM proxy.

Items are asked one by one, as many at a time as the server bears (`throttle.py`), and each answer
is written down before the next one is asked in its place (`item_journal.py`). At a kill no more
than `concurrency` items can be in flight: they are asked again, and counted as possibly repeated.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from batchrouter import killpoints
from batchrouter.server.lanes.bodies import openai_body, usage_of
from batchrouter.server.lanes.chats import as_chat, as_response
from batchrouter.server.lanes.health import LaneHealth
from batchrouter.server.lanes.item_journal import ItemJournal, Journals
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem, LaneProgress
from batchrouter.server.lanes.provider import (
    ProviderRefusedError,
    ProviderSilentError,
    ProviderUnreachableError,
)
from batchrouter.server.lanes.settings import LaneSettings
from batchrouter.server.lanes.throttle import Throttle
from batchrouter.server.lanes.troubles import trouble
from batchrouter.server.lanes.wire import Wire

__all__ = ["OpenAIHttpLane"]

#: How long a server that cannot be reached is tried before its items go elsewhere.
GIVE_UP_AFTER_S = 15 * 60.0
_BYTES_PER_TOKEN = 4
_POLL_S = 0.2
_TOO_MANY = 429
_JOURNAL_PAUSE_S = 0.5
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class OpenAIHttpLane:
    """One model of such a server; `lane.Lane` has the methods.

    Args:
        provider: The lane's name.
        model: The server's name of the model.
        wire: The server.
        throttle: Shared by the server's models.
        health: Told of each outcome.
        journals: What was asked and answered.
        settings: The lane's options.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        *,
        wire: Wire,
        throttle: Throttle,
        health: LaneHealth,
        journals: Journals,
        settings: LaneSettings,
    ) -> None:
        self.provider = provider
        self.model = model
        self.is_local = False
        self.remembers = True
        self.retry_first_s = 2.0
        self._wire = wire
        self._throttle = throttle
        self._health = health
        self._journals = journals
        self._settings = settings
        self._threads = ThreadPoolExecutor(
            settings.concurrency, thread_name_prefix=f"lane-{provider}"
        )
        self._dispatches: dict[str, _Dispatch] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def worst_case(self, item: LaneItem) -> tuple[int, int]:
        """Every byte a token, if not configured otherwise, and the whole output cap."""
        tokens = -(-len(item.body) * self._settings.tokens_per_byte // 1)
        return int(tokens), item.max_output_tokens

    def find(self, key: str) -> str | None:
        """Return the key itself, which is the handle, if there is a journal."""
        return key if self._journals.open(key).exists else None

    def submit(self, key: str, items: Iterable[LaneItem]) -> str:
        """Write the items down; `poll` begins to ask them."""
        self._journals.open(key).write_items(items)
        return key

    def poll(self, handle: str) -> LaneProgress:
        """See to it that the items are being asked, and tell whether all are answered."""
        with self._lock:
            dispatch = self._dispatches.get(handle)
            if dispatch is None:
                journal = self._journals.open(handle)
                dispatch = self._dispatches[handle] = _Dispatch(journal)
                for _ in range(min(self._settings.concurrency, dispatch.left)):
                    self._threads.submit(self._ask_one, dispatch)
        if not dispatch.is_done:
            return LaneProgress(is_finished=False, next_poll_s=_POLL_S)
        return LaneProgress(is_finished=True, possibly_repeated=dispatch.possibly_repeated)

    def collect(self, handle: str, items: Iterable[LaneItem]) -> Iterator[LaneAnswer]:
        """Read the answers from the journal."""
        answers, _ = self._journals.open(handle).answers()
        unanswered = LaneAnswer(
            None, error_code="provider_timeout", error_message="it was not asked", is_retryable=True
        )
        for item in items:
            yield answers.get(item.sequence_no, unanswered)
        with self._lock:
            dispatch = self._dispatches.pop(handle, None)
        if dispatch is not None:
            self._health.took(time.monotonic() - dispatch.began_s)

    def cancel(self, handle: str) -> None:
        """Ask no further items; those in flight are answered and billed."""
        with self._lock:
            dispatch = self._dispatches.get(handle)
        if dispatch is not None:
            dispatch.stop()
            self._throttle.wake()

    def forget(self, batch_id: str) -> None:
        """Delete the journals of a batch that has ended."""
        self._journals.forget(batch_id)

    def close(self) -> None:
        """Ask nothing more, and wait for what is in flight as long as one answer may take."""
        self._is_closed = True
        self._throttle.wake()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._wire.close()

    def _ask_one(self, dispatch: "_Dispatch") -> None:
        """Ask the next item, then make way for the other chunks' ones."""
        item = dispatch.take()
        if item is None:
            return
        tokens = len(item.body) // _BYTES_PER_TOKEN + item.max_output_tokens
        is_over = lambda: self._is_closed or dispatch.is_stopped  # noqa: E731 - one look at two flags
        if not self._throttle.enter(tokens, is_over):
            dispatch.put_back(item)
            return
        outcome = _Outcome(None)
        try:
            outcome = self._mark(dispatch, item) or self._ask(dispatch, item)
        except Exception as error:  # noqa: BLE001 - one item's failure must not leave the others waiting
            told = f"the answer could not be read ({type(error).__name__})"
            outcome = _Outcome(trouble(told, code="api_error"))
        finally:
            self._throttle.leave(
                is_overloaded=outcome.is_overloaded, retry_after_s=outcome.retry_after_s
            )
        if outcome.answer is None:
            dispatch.put_back(item)
        else:
            self._keep_answer(dispatch, item, outcome.answer)
        if not self._is_closed:
            self._threads.submit(self._ask_one, dispatch)

    def _mark(self, dispatch: "_Dispatch", item: LaneItem) -> "_Outcome | None":
        """Write down that it is sent; an outcome says that it cannot be, and must not be sent."""
        try:
            dispatch.journal.mark_sent(item)
        except Exception as error:  # noqa: BLE001 - a full disk, a database that is away: asked again later
            _log.warning("%s: an item could not be marked: %s", self.provider, type(error).__name__)
            time.sleep(_JOURNAL_PAUSE_S)
            return _Outcome(None)
        return None

    def _keep_answer(self, dispatch: "_Dispatch", item: LaneItem, answer: LaneAnswer) -> None:
        """Write the answer down, however long that takes: it is paid for."""
        while True:
            try:
                dispatch.answered(item, answer)
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("%s: an answer is not kept: %s", self.provider, type(error).__name__)
                if self._is_closed:
                    return
                time.sleep(_JOURNAL_PAUSE_S)
            else:
                return

    def _ask(self, dispatch: "_Dispatch", item: LaneItem) -> "_Outcome":
        """Ask; an outcome without an answer says that the server was not reached."""
        try:
            asked = item if self._settings.has_responses else as_chat(item)
            body = openai_body(asked, self.model, cap_parameter=self._settings.cap_parameter)
        except ValueError as wrong:
            told = LaneAnswer(None, error_code="invalid_input", error_message=str(wrong))
            return _Outcome(told)
        killpoints.reached("lanes.before_item")
        try:
            told = self._wire.ask(
                "POST",
                asked.endpoint.removeprefix("/v1"),
                content=body,
                headers={"Content-Type": "application/json"},
            )
        except ProviderUnreachableError as error:
            self._throttle.back_off()
            self._health.failed(str(error))
            if dispatch.unreachable_for_s() < GIVE_UP_AFTER_S:
                return _Outcome(None, is_overloaded=True)
            return _Outcome(trouble(str(error), code="api_error"), is_overloaded=True)
        except ProviderSilentError as error:
            self._health.failed(str(error))
            code = "timeout_error" if error.status is None else ""
            answer = trouble(str(error), code=code, status=error.status)
            return _Outcome(answer, is_overloaded=True)
        except ProviderRefusedError as refusal:
            answer = trouble(str(refusal), code=refusal.code, status=refusal.status)
            return _Outcome(answer, refusal.status == _TOO_MANY, refusal.retry_after_s)
        killpoints.reached("lanes.after_item")
        dispatch.heard()
        self._health.succeeded()
        body = _encode(told)
        return _Outcome(as_response(LaneAnswer(body, *usage_of(body, asked)), item))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one request; no answer: it is to be asked again."""

    answer: LaneAnswer | None
    is_overloaded: bool = False
    retry_after_s: float | None = None


class _Dispatch:
    """One submission that is being asked."""

    def __init__(self, journal: ItemJournal) -> None:
        self.journal = journal
        answers, open_marks = journal.answers()
        self.possibly_repeated = len(open_marks)
        self.began_s = time.monotonic()
        self._waiting = deque(item for item in journal.items() if item.sequence_no not in answers)
        self._open = len(self._waiting)
        self._taken = 0
        self._unreachable_since: float | None = None
        self._lock = threading.Lock()
        self.is_stopped = False

    @property
    def left(self) -> int:
        return self._open

    @property
    def is_done(self) -> bool:
        """Nothing is in flight, and nothing is to be asked any more."""
        with self._lock:
            return self._taken == 0 and (self._open == 0 or self.is_stopped)

    def take(self) -> LaneItem | None:
        with self._lock:
            if self.is_stopped or not self._waiting:
                return None
            self._taken += 1
            return self._waiting.popleft()

    def put_back(self, item: LaneItem) -> None:
        with self._lock:
            self._taken -= 1
            self._waiting.appendleft(item)

    def answered(self, item: LaneItem, answer: LaneAnswer) -> None:
        self.journal.write_answer(item, answer)
        with self._lock:
            self._taken -= 1
            self._open -= 1

    def stop(self) -> None:
        self.is_stopped = True

    def heard(self) -> None:
        self._unreachable_since = None

    def unreachable_for_s(self) -> float:
        now = time.monotonic()
        if self._unreachable_since is None:
            self._unreachable_since = now
        return now - self._unreachable_since
