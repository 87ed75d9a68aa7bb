"""`Client` and `AsyncClient`: the API's eight endpoints, and the download of what they made.

Both drive the same flows, so they repeat, wait, read and refuse alike. Every method raises

- `TransportError` when no reply came, after the repeats that are safe;
- a subclass of `APIError` when the server said no, with its `code`, `details`, `request_id`;
- `ProtocolError` when the reply makes no sense, so that nothing can be concluded from it;
- `ConfigError` when an argument is wrong; nothing was sent then.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from batchrouter.api import downloads, flows, requests
from batchrouter.api.async_client import AsyncClient
from batchrouter.api.calls import Caller
from batchrouter.api.models import ArtifactLink, Batch, BatchPage, ManifestFile, Quote
from batchrouter.api.settings import Settings, resolve_settings
from batchrouter.api.steps import run
from batchrouter.api.targets import Writer, target_for
from batchrouter.api.transport import SyncTransport
from batchrouter.api.uploads import Progress

__all__ = ["AsyncClient", "Client"]


class Client:
    """The Batches API with blocking calls; safe to share between threads.

    Args:
        settings: Everything at once; read from the environment when left out.
        base_url: Beats the settings.
        api_key: Beats the settings.
        overrides: Any other field of `Settings`; beats the settings.

    Raises:
        ConfigError: A setting is wrong, or there is no API key. Nothing was sent.

    Example:
        >>> with Client(base_url="http://127.0.0.1:8765", api_key="bk_live_1") as client:
        ...     client.settings.timeout_s
        30.0
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
        self._transport = SyncTransport(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caller.host})"

    def close(self) -> None:
        """Close all connections; the client is of no use afterwards."""
        self._transport.close()

    def quote_model(
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
        """Lock a price for running items on any one of some models; costs nothing.

        A server that does not know an optional field (from `sla_tier` on) is asked again
        without it, and the quote's `dropped_fields` says so: compare the quote with your
        budget yourself, whatever `max_price` was.

        Args:
            models: The models that will do.
            estimated_items: How many items at most, at least 1.
            task: ``responses``, ``embeddings`` or ``vision``.
            routing_mode: ``cheapest`` is what there is.
            privacy_tier: ``standard``, ``restricted`` or ``zdr``.
            allowed_regions: Where it may run.
            sla_tier: ``standard`` (24 h) or ``flex`` (48 h).
            max_price: The most that it may cost in all (USD).
            allow_split: Whether several providers may share the items.
            estimated_input_tokens: Per item, mean.
            estimated_output_tokens: Per item, mean.
            max_output_tokens: Per item, cap.
            metadata: Kept with the quote.
        """
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
        return run(flows.quote_model(self._caller, fields), self._transport)

    def quote_workflow(
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
        """Lock a price for the outcome of a curated workflow; costs nothing.

        Args:
            workflow: ``slug@vN``, or ``slug`` for the newest version.
            estimated_items: How many items at most, at least 1.
            routing_mode: As in `quote_model`, and so are all below.
            privacy_tier: See there.
            allowed_regions: See there.
            sla_tier: See there.
            max_price: See there.
            allow_split: See there.
            estimated_input_tokens: See there.
            estimated_output_tokens: See there.
            max_output_tokens: See there.
            metadata: See there.
        """
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
        return run(flows.quote_workflow(self._caller, fields), self._transport)

    def upload_manifest(
        self,
        source: str | Path | Callable[[], BinaryIO],
        *,
        filename: str | None = None,
        size_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> ManifestFile:
        """Stream a JSONL manifest up, in flat memory; costs nothing.

        Args:
            source: A path, or a function that opens the bytes anew at each attempt.
            filename: For display; the path's own name when left out.
            size_bytes: Needed only for a source that cannot seek.
            on_progress: Called with bytes sent and bytes in all, from 0 again at a repeat.

        Raises:
            StorageError: The source cannot be read, or changed meanwhile.
            BadRequestError: ``invalid_manifest``; `details` names the lines, nothing is kept.
        """
        flow = flows.upload_manifest(
            self._caller,
            source,
            filename=filename,
            size_bytes=size_bytes,
            on_progress=on_progress,
        )
        return run(flow, self._transport)

    def submit_batch(
        self,
        body: Mapping[str, Any],
        *,
        webhook: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Buy what was quoted.

        Sent again after a lost reply only under an idempotency key, always with this body;
        without a key a `TransportError` leaves open whether something was bought.

        Args:
            body: Sent as it is: ``quote_id``, ``input_file_id`` or ``items``, ``metadata``, …
            webhook: ``{url, secret}``, added on the wire only, so that a recorded body holds
                no secret.
            idempotency_key: 8 to 128 printable characters. The answer's `replayed` tells that
                the key had already bought this batch.

        Raises:
            ConflictError: The lock is expired, accepted already (`details` has the batch), or
                does not fit; or the key stands for another body.
            InsufficientCreditsError: Nothing was bought.
        """
        flow = flows.submit_batch(
            self._caller, body, webhook=webhook, idempotency_key=idempotency_key
        )
        return run(flow, self._transport)

    def list_batches(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        state: Sequence[str] = (),
        updated_after: datetime | None = None,
        view: str | None = None,
    ) -> BatchPage:
        """Read one page of batches, newest first.

        A server may ignore `state`, `updated_after` and `view`: check what comes.

        Args:
            limit: At most 1000.
            after: The `next_cursor` of the page before.
            state: Only batches in one of these states.
            updated_after: Only batches that changed since, an aware datetime.
            view: ``summary`` for id, state, counts and time of change only.
        """
        query = requests.list_query(
            limit=limit, after=after, state=state, updated_after=updated_after, view=view
        )
        return run(flows.list_batches(self._caller, query), self._transport)

    def retrieve_batch(
        self,
        batch_id: str,
        *,
        include_billing_receipt: bool = False,
        include_partial_output: bool = False,
    ) -> Batch:
        """Read a batch as it is now.

        Args:
            batch_id: Opaque.
            include_billing_receipt: Add `billing_receipt`.
            include_partial_output: Add `partial_output` if the batch ended early with items.
        """
        flow = flows.retrieve_batch(
            self._caller,
            batch_id,
            include_billing_receipt=include_billing_receipt,
            include_partial_output=include_partial_output,
        )
        return run(flow, self._transport)

    def artifact_url(self, batch_id: str) -> ArtifactLink:
        """Get a fresh signed URL of a succeeded batch's artifact; it opens for anyone.

        Raises:
            ConflictError: ``artifact_not_ready``; `details.final` tells whether it ever will be.
            GoneError: ``artifact_expired``.
        """
        return run(flows.artifact_url(self._caller, batch_id), self._transport)

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop further routing; items that a provider already has may complete and be billed.

        Raises:
            ConflictError: ``batch_not_cancellable``: it is finalizing or has ended.
        """
        return run(flows.cancel_batch(self._caller, batch_id), self._transport)

    def download_artifact(
        self,
        batch_id: str,
        to: str | Path | Writer,
        *,
        partial: bool = False,
        on_progress: Progress | None = None,
    ) -> ArtifactLink:
        """Bring the artifact down, whole and verified, in flat memory.

        A broken connection or an expired URL is resumed where it stopped. A path is filled as
        ``<name>.part``, which a later call or process goes on with, and renamed when size and
        sha256 are the promised ones; a writer gets every byte once, in order, before that is
        known.

        Args:
            batch_id: Of a succeeded batch.
            to: A path, or anything with ``write(bytes)``.
            partial: Take the partial output of a cancelled or failed batch instead.
            on_progress: Called with bytes received and bytes in all (0 when not told).

        Raises:
            ArtifactError: Size or sha256 are not the promised ones; no path was left behind.
            StorageError: The disk or the writer refuses; the part stays.
            TransportError: The store stays silent; the part stays.
            ConflictError, GoneError: As `artifact_url`.
            BatchFailedError: `partial`, and there is none.
        """
        target = target_for(to, on_progress=on_progress)
        flow = downloads.download_artifact(self._caller, batch_id, target, partial=partial)
        return run(flow, self._transport)

    def server_time(self) -> datetime:
        """Read the server's clock, aware UTC; needs no valid key."""
        return run(flows.server_time(self._caller), self._transport)
