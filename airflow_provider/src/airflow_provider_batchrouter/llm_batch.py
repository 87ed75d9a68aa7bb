"""An adapter of `apache-airflow-providers-common-ai`: its `@task.llm_batch` buys from us.

That package loads it by its entry point once a ``model_id`` begins with ``batchrouter:``, and
nothing here imports that package before. It writes lines and reads answers as for OpenAI, whose
batch files the router takes unchanged; what is ours is the locked price and the one purchase.

Its tasks hold prompts in XCom, land JSONL and poll each for itself:
`BatchrouterRunJobOperator` does not.
"""

import json
import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.ai.batch.base import (
    BatchRequest,
    BatchState,
    BatchStatus,
    RawResultItem,
    SubmitResult,
)
from airflow.providers.common.ai.batch.openai import OpenAIBatchAdapter

from batchrouter import Client, Settings

if TYPE_CHECKING:
    from airflow.providers.common.ai.batch.output_schema import OutputSpec

    from batchrouter.api.models import Batch

_ENDED: dict[str, BatchStatus] = {
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}

_PAGE = 1000
_CLOCKS_DIFFER = timedelta(minutes=5)


class BatchrouterBatchAdapter(OpenAIBatchAdapter):
    """Locks a price, buys one batch under it, and finds it again by its metadata.

    The connection is of type ``batchrouter`` or ``pydanticai``: base URL in the host, key in the
    password. ``BATCHROUTER_MAX_RUN_USD`` of the environment caps what one task may cost: a
    price above it is not locked, and nothing is bought.

    Example:
        >>> @task.llm_batch(                                          # doctest: +SKIP
        ...     llm_conn_id="batchrouter_default",
        ...     model_id="batchrouter:gpt-4o-mini",
        ...     result_path="s3://lake/labels",
        ... )
        ... def label() -> list[str]:
        ...     return ["Which product is meant: …"]
    """

    name = "batchrouter"
    conn_types: ClassVar[frozenset[str]] = frozenset({"batchrouter", "pydanticai"})

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, client: Any | None = None
    ) -> None:
        # Not the parent's, which would ask for OpenAI's own library.
        self._client: Client = client or Client(
            Settings.from_env(api_key=api_key, base_url=base_url)
        )

    def submit(
        self,
        requests: list[BatchRequest],
        *,
        model: str,
        idempotency_key: str,
        input_fingerprint: str,
        output_spec: "OutputSpec",
        system_prompt: str = "",
        max_tokens: int = 1024,
        request_params: dict[str, Any] | None = None,
        completion_window: str = "24h",
        **kwargs: Any,
    ) -> SubmitResult:
        """Upload the lines, lock a price for what the router has counted in them, and buy.

        Raises:
            BatchrouterError: Nothing was bought; or, as a `TransportError`, the reply was lost,
                and `find_orphaned_batch` tells whether something was.
        """
        del completion_window, kwargs
        lines = self._iter_lines(
            requests,
            model=model,
            idempotency_key=idempotency_key,
            directive=self.build_output_directive(output_spec),
            system_prompt=system_prompt,
            max_tokens=max_tokens,
            request_params=request_params,
        )
        with TemporaryDirectory() as folder:
            path = Path(folder, "requests.jsonl")
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            manifest = self._client.upload_manifest(path)
        count = len(requests)
        tokens = manifest.input_tokens_estimate
        quote = self._client.quote_model(
            model,
            estimated_items=count,
            estimated_input_tokens=math.ceil(tokens / count) if tokens else None,
            max_output_tokens=max(each.get("max_tokens") or max_tokens for each in requests),
            max_price=self._client.settings.max_run_usd,
        )
        body = {
            "quote_id": quote.quote_id,
            "input_file_id": manifest.file_id,
            "metadata": _metadata(idempotency_key, input_fingerprint),
        }
        # A quote buys once, so its id makes a key that a repeat of this very call shares.
        bought = self._client.submit_batch(body, idempotency_key=f"llm-batch-{quote.quote_id}")
        return SubmitResult(batch_id=bought.id, provider_input_ref=manifest.file_id)

    def get_batch(self, batch_id: str) -> BatchState:
        """How it stands now."""
        batch = self._client.retrieve_batch(batch_id)
        counts = batch.counts
        rest = counts.pending + counts.running if counts else 0
        return BatchState(
            status=_ENDED.get(batch.state, "in_progress"),
            counts=counts
            and {
                "succeeded": counts.completed,
                "errored": counts.failed,
                "expired": rest if batch.state == "expired" else 0,
                "cancelled": counts.cancelled,
            },
            error_message=batch.error.message if batch.error else None,
        )

    def cancel_batch(self, batch_id: str) -> None:
        """Ask it to cancel; what a provider already has may complete and be billed."""
        self._client.cancel_batch(batch_id)

    def iter_results(self, batch_id: str) -> Iterator[RawResultItem]:
        """Bring the artifact down, whole and verified, and read it line by line.

        Raises:
            BatchFailedError: The batch has no output at all.
        """
        batch = self._client.retrieve_batch(batch_id)
        folder = TemporaryDirectory()
        path = Path(folder.name, "artifact.jsonl")
        try:
            self._client.download_artifact(batch_id, path, partial=batch.state != "succeeded")
        except BaseException:
            folder.cleanup()
            raise
        return self._read(path, folder)

    def _read(self, path: Path, folder: "TemporaryDirectory[str]") -> Iterator[RawResultItem]:
        with folder, path.open(encoding="utf-8") as lines:
            for line in lines:
                yield self._parse_result_line(json.loads(line))

    def find_orphaned_batch(
        self, idempotency_key: str, input_fingerprint: str, not_before: str
    ) -> str | None:
        """Look for the batch whose create reply was lost, newest first.

        Raises:
            BatchrouterError: The API does not answer, so that nobody knows.
        """
        wanted = _metadata(idempotency_key, input_fingerprint)
        since = datetime.fromisoformat(not_before) - _CLOCKS_DIFFER if not_before else None
        for batch in self._newest_first():
            if since and batch.created_at and batch.created_at < since:
                return None
            if wanted.items() <= batch.metadata.items():
                return batch.id
        return None

    def _newest_first(self) -> "Iterator[Batch]":
        options: dict[str, Any] = {}
        while True:
            page = self._client.list_batches(limit=_PAGE, **options)
            yield from page.data
            if not page.has_more or not page.next_cursor:
                return
            options = {"after": page.next_cursor}


def _metadata(idempotency_key: str, input_fingerprint: str) -> dict[str, str]:
    return {"llm_batch_key": idempotency_key, "llm_batch_input": input_fingerprint[:16]}
