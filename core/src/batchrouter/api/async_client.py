"""`AsyncClient`, the awaited twin of `Client`; a test compares their signatures."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from batchrouter.api import downloads, flows, requests
from batchrouter.api.calls import Caller
from batchrouter.api.models import ArtifactLink, Batch, BatchPage, ManifestFile, Quote
from batchrouter.api.settings import Settings, resolve_settings
from batchrouter.api.steps import run_async
from batchrouter.api.targets import Writer, target_for
from batchrouter.api.transport import AwaitedTransport
from batchrouter.api.uploads import Progress


class AsyncClient:
    """The Batches API for an event loop, which it never blocks: `Client` with awaited methods.

    Arguments, results and errors are those of `Client`, method by method. Files are read and
    written in threads; progress is reported in the loop's own thread.

    Example:
        >>> import asyncio
        >>> async def main() -> str:
        ...     async with AsyncClient(base_url="http://127.0.0.1:8765", api_key="k") as client:
        ...         return repr(client)
        >>> asyncio.run(main())
        'AsyncClient(127.0.0.1:8765)'
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        **overrides: Any,
    ) -> None:
        self.settings = resolve_settings(settings, base_url=base_url, api_key=api_key, **overrides)
        self._caller = Caller.from_settings(self.settings)
        self._transport = AwaitedTransport(self.settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caller.host})"

    async def close(self) -> None:
        """As `Client.close`."""
        await self._transport.close()

    async def quote_model(
        self,
        models: Sequence[str] | str,
        *,
        estimated_items: int,
        task: str = "responses",
        routing_mode: str = "cheapest",
        privacy_tier: str = "standard",
        allowed_regions: Sequence[str] = ("global",),
        sla_tier: str | None = None,
        max_price: Decimal | str | None = None,
        allow_split: bool | None = None,
        estimated_input_tokens: int | None = None,
        estimated_output_tokens: int | None = None,
        max_output_tokens: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Quote:
        """As `Client.quote_model`."""
        fields = requests.quote_fields(
            {"models": [models] if isinstance(models, str) else list(models), "task": task},
            estimated_items=estimated_items,
            routing_mode=routing_mode,
            privacy_tier=privacy_tier,
            allowed_regions=allowed_regions,
            sla_tier=sla_tier,
            max_price=max_price,
            allow_split=allow_split,
            estimated_input_tokens=estimated_input_tokens,
            estimated_output_tokens=estimated_output_tokens,
            max_output_tokens=max_output_tokens,
            metadata=metadata,
        )
        return await run_async(flows.quote_model(self._caller, fields), self._transport)

    async def quote_workflow(
        self,
        workflow: str,
        *,
        estimated_items: int,
        routing_mode: str = "cheapest",
        privacy_tier: str = "standard",
        allowed_regions: Sequence[str] = ("global",),
        sla_tier: str | None = None,
        max_price: Decimal | str | None = None,
        allow_split: bool | None = None,
        estimated_input_tokens: int | None = None,
        estimated_output_tokens: int | None = None,
        max_output_tokens: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Quote:
        """As `Client.quote_workflow`."""
        fields = requests.quote_fields(
            {"workflow": workflow},
            estimated_items=estimated_items,
            routing_mode=routing_mode,
            privacy_tier=privacy_tier,
            allowed_regions=allowed_regions,
            sla_tier=sla_tier,
            max_price=max_price,
            allow_split=allow_split,
            estimated_input_tokens=estimated_input_tokens,
            estimated_output_tokens=estimated_output_tokens,
            max_output_tokens=max_output_tokens,
            metadata=metadata,
        )
        return await run_async(flows.quote_workflow(self._caller, fields), self._transport)

    async def upload_manifest(
        self,
        source: str | Path | Callable[[], BinaryIO],
        *,
        filename: str | None = None,
        size_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> ManifestFile:
        """As `Client.upload_manifest`."""
        flow = flows.upload_manifest(
            self._caller,
            source,
            filename=filename,
            size_bytes=size_bytes,
            on_progress=on_progress,
        )
        return await run_async(flow, self._transport)

    async def submit_batch(
        self,
        body: Mapping[str, Any],
        *,
        webhook: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """As `Client.submit_batch`."""
        flow = flows.submit_batch(
            self._caller, body, webhook=webhook, idempotency_key=idempotency_key
        )
        return await run_async(flow, self._transport)

    async def list_batches(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        state: Sequence[str] = (),
        updated_after: datetime | None = None,
        view: str | None = None,
    ) -> BatchPage:
        """As `Client.list_batches`."""
        query = requests.list_query(
            limit=limit, after=after, state=state, updated_after=updated_after, view=view
        )
        return await run_async(flows.list_batches(self._caller, query), self._transport)

    async def retrieve_batch(
        self,
        batch_id: str,
        *,
        include_billing_receipt: bool = False,
        include_partial_output: bool = False,
    ) -> Batch:
        """As `Client.retrieve_batch`."""
        flow = flows.retrieve_batch(
            self._caller,
            batch_id,
            include_billing_receipt=include_billing_receipt,
            include_partial_output=include_partial_output,
        )
        return await run_async(flow, self._transport)

    async def artifact_url(self, batch_id: str) -> ArtifactLink:
        """As `Client.artifact_url`."""
        return await run_async(flows.artifact_url(self._caller, batch_id), self._transport)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """As `Client.cancel_batch`."""
        return await run_async(flows.cancel_batch(self._caller, batch_id), self._transport)

    async def download_artifact(
        self,
        batch_id: str,
        to: str | Path | Writer,
        *,
        partial: bool = False,
        on_progress: Progress | None = None,
    ) -> ArtifactLink:
        """As `Client.download_artifact`."""
        target = target_for(to, on_progress=on_progress)
        flow = downloads.download_artifact(self._caller, batch_id, target, partial=partial)
        return await run_async(flow, self._transport)

    async def server_time(self) -> datetime:
        """As `Client.server_time`."""
        return await run_async(flows.server_time(self._caller), self._transport)
