"""Mistral's batch jobs: files and metadata like OpenAI's, under other names.

Wire: `POST /v1/files`, `POST /v1/batch/jobs` with `input_files` and metadata, jobs listed by
`created_after`, an output and an error file (API reference, read 2026-11). Results are kept for a
day only, so they are downloaded the moment that they are ready. There is no `/v1/responses`:
such items are asked as chats, and answered as responses.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from batchrouter.server.lanes.bodies import CHAT, EMBEDDINGS, openai_body
from batchrouter.server.lanes.chats import as_chat, as_response
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.openai_batch import INTENT, read_answer, read_item_id
from batchrouter.server.lanes.provider import (
    Candidate,
    ProviderLimits,
    Reconciles,
    Report,
)
from batchrouter.server.lanes.provider_files import ProviderFiles
from batchrouter.server.lanes.settings import LaneSettings
from batchrouter.server.lanes.wire import Wire
from batchrouter.server.storage.clock import datetime_from_us, now_us, us_from_datetime

__all__ = ["MistralBatch"]

_JOBS = "/v1/batch/jobs"
_PAGE = 100
_US = 1_000_000
_TIMEOUT_HOURS = 24


class MistralBatch:
    """One model of Mistral's; `provider.ProviderBatch` has the methods.

    Args:
        wire: The account.
        model: Mistral's name of the model.
        settings: Limits.
    """

    def __init__(self, wire: Wire, model: str, settings: LaneSettings) -> None:
        self.reconciles: Reconciles = "metadata+file"
        self.limits = ProviderLimits(
            settings.max_items, settings.max_bytes, settings.enqueued_tokens
        )
        self.poll_s = settings.poll_s
        self._wire = wire
        self._files = ProviderFiles(wire, "/v1/files")
        self._model = model
        self._cap_parameter = settings.cap_parameter

    def now_us(self) -> int:
        """The time of the last answer; asks for one job when there was none."""
        if self._wire.now_us() is None:
            self._wire.ask("GET", _JOBS, params={"page_size": 1})
        return self._wire.now_us() or now_us()

    def line(self, item_id: str, item: LaneItem) -> bytes:
        """Write the item as a line of Mistral's batch files."""
        body = openai_body(as_chat(item), self._model, cap_parameter=self._cap_parameter)
        return b'{"custom_id":"%b","body":%b}' % (item_id.encode(), body)

    def upload(self, intent: str, lines: Iterable[bytes]) -> str | None:
        """Upload the lines as a file of their own."""
        return self._files.upload(intent, lines)

    def create(self, intent: str, input_file: str | None, lines: Iterable[bytes]) -> str:
        """Create the job, with the intent in its metadata."""
        is_chat = "messages" in msgspec.json.decode(next(iter(lines)))["body"]
        body = {
            "input_files": [input_file],
            "endpoint": CHAT if is_chat else EMBEDDINGS,
            "model": self._model,
            "metadata": {INTENT: intent},
            "timeout_hours": _TIMEOUT_HOURS,
        }
        return str(self._wire.ask("POST", _JOBS, json=body)["id"])

    def listed(self, since_us: int) -> Iterator[Candidate]:
        """Page the jobs that were made after a time."""
        page_number = 0
        while True:
            params = {
                "page": page_number,
                "page_size": _PAGE,
                "created_after": datetime_from_us(since_us).isoformat(),
            }
            page = self._wire.ask("GET", _JOBS, params=params)
            for job in page["data"] or []:
                files = job.get("input_files") or []
                yield Candidate(
                    job["id"],
                    _created_at(job["created_at"]),
                    intent=(job.get("metadata") or {}).get(INTENT),
                    input_file=files[0] if files else None,
                )
            page_number += 1
            if len(page["data"] or []) < _PAGE:
                return

    def delete_file(self, input_file: str) -> None:
        """Delete the file, so that a create that names it fails validation."""
        self._files.delete(input_file)

    def report(self, batch_id: str) -> Report:
        """Read the job's status."""
        job = self._wire.ask("GET", f"{_JOBS}/{batch_id}")
        match job["status"]:
            case "SUCCESS":
                return Report("ended")
            case "TIMEOUT_EXCEEDED" | "CANCELLED":
                return Report("ended", was_cut_short=True)
            case "FAILED":
                errors = job.get("errors") or [{}]
                told = str(errors[0].get("message") or "the provider gives no reason")
                return Report("failed", code="batch_failed", message=told)
            case _:
                return Report("working")

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Read the output file, then the error file."""
        job = self._wire.ask("GET", f"{_JOBS}/{batch_id}")
        yield from self._files.read(job.get("output_file"), job.get("error_file"))

    def item_id(self, line: bytes) -> str | None:
        """Read `custom_id`."""
        return read_item_id(line)

    def answer(self, line: bytes, item: LaneItem) -> LaneAnswer:
        """Read a line of either file."""
        return as_response(read_answer(line, as_chat(item)), item)

    def cancel(self, batch_id: str) -> None:
        """Ask for the cancel."""
        self._wire.ask("POST", f"{_JOBS}/{batch_id}/cancel")

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()


def _created_at(value: Any) -> int:
    if isinstance(value, int | float):
        return int(value * _US)
    told = datetime.fromisoformat(value)
    return us_from_datetime(told if told.tzinfo else told.replace(tzinfo=UTC))
