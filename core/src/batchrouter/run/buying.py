"""Buying: quote, gate, upload, quote again if stale, write the intents down, send.

Nothing is sent before the price is locked and inside the budget, and nothing is bought before
the purchase is in the journal, to the letter. A kill at any point leaves either nothing, or
an intent that `adoption` settles.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from batchrouter.errors import (
    BadRequestError,
    BudgetExceededError,
    ConflictError,
    InsufficientCreditsError,
    NotFoundError,
    ProtocolError,
)
from batchrouter.killpoints import reached
from batchrouter.money import format_usd
from batchrouter.run.adoption import find_listed, record, settle
from batchrouter.run.context import RunContext
from batchrouter.run.decide import is_winding_down, newest_round, parts_to_buy
from batchrouter.run.events import EndOfRounds, Intended, RoundsEnded, Stopped, Uploaded
from batchrouter.run.folder import storage_errors
from batchrouter.run.progress import Progress
from batchrouter.run.quoting import needs_quote, over_budget, quote_parts
from batchrouter.run.state import PartState

_log = logging.getLogger(__name__)

UPLOAD_KEPT_FOR = timedelta(days=6)
"""The API deletes unused uploads after 7 days (contract section 2); a day is left to submit."""

_EXPIRY_SLACK = timedelta(seconds=5)


def buy(context: RunContext) -> None:
    """Take every part that is not bought yet as far as a written intent, then send them.

    Raises:
        BudgetExceededError: The price is above the budget. Before the first purchase nothing
            was sent; after it, what was accepted has been asked to cancel.
        APIError: The API refuses.
        TransportError: No reply; open the run again to go on.
        StorageError: The journal cannot be written; nothing was bought that is not in it.
    """
    lock_prices(context)
    for part in parts_to_buy(context.state):
        _upload(context, part)
    lock_prices(context)
    for part in parts_to_buy(context.state):
        _intend(context, part)
    settle_all(context)


def lock_prices(context: RunContext, *, gate: bool = True) -> None:
    """Quote what has no fresh quote, and hold the sum against the budget.

    A retry round that does not fit, or that nobody sells any more, is given up: then no part is
    to be bought afterwards, and what came before is landed.

    Args:
        context: The run.
        gate: False only asks for the price.

    Raises:
        BudgetExceededError: See `buy`.
    """
    parts = parts_to_buy(context.state)
    is_retry = gate and context.state.retry_count > 0
    # All or none: the sum that is held against the budget is of one moment.
    if any(needs_quote(context, part) for part in parts):
        try:
            quote_parts(context, parts)
        except (BadRequestError, NotFoundError, InsufficientCreditsError) as error:
            if not is_retry:
                raise
            end_rounds(context, "refused", str(error))
            return
    excess = over_budget(context, parts) if gate else None
    if excess is None:
        return
    if is_retry:
        end_rounds(context, "over_budget", excess)
        return
    if newest_round(context.state) or context.state.open_intents:
        raise _stopped(context, excess)
    raise BudgetExceededError(
        f"{excess}. Nothing of it was bought. Raise `budget` (or the setting max_run_usd), lower "
        "`max_output_tokens`, or allow a cheaper model."
    )


def end_rounds(context: RunContext, code: EndOfRounds, reason: str) -> None:
    """Journal that no further round is begun or bought, and why; what was bought goes on."""
    state = context.state
    begun = (state.generation, state.round)
    context.journal.append(
        RoundsEnded(generation=begun[0], round=begun[1], code=code, reason=reason),
        still=lambda now: (now.generation, now.round) == begun and now.rounds_ended is None,
    )


def _stopped(context: RunContext, excess: str) -> BudgetExceededError:
    state = context.state
    ids = ", ".join(each.batch_id for each in state.current[:3])
    reason = (
        f"{excess}. Nothing more is bought; what was accepted before ({ids}) is asked to cancel, "
        f"and up to {format_usd(state.committed_usd)} USD may be billed in all"
    )
    _stop(context, reason)
    return BudgetExceededError(
        f"{reason}. Run the same run key again to land what finishes; the rest is bought only by "
        "on_rerun='rebuy' (CLI: --rebuy), with a higher budget."
    )


def _stop(context: RunContext, reason: str) -> None:
    generation = context.state.generation
    context.journal.append(
        Stopped(generation=generation, reason=reason),
        still=lambda state: state.generation == generation and state.stopped is None,
    )
    cancel_open_batches(context)


def _upload(context: RunContext, part: PartState) -> None:
    if part.upload is not None and not _is_old(part):
        return
    begun = (context.state.generation, context.state.round)
    manifest = context.to_send
    built = manifest.parts[part.index]
    path = context.folder.path("manifest", built.manifest_path)
    before = sum(each.bytes for each in manifest.parts[: part.index])
    total = sum(each.bytes for each in manifest.parts)

    from batchrouter.manifest.packing import open_manifest  # noqa: PLC0415 - loads pyarrow

    def open_part() -> BinaryIO:
        with storage_errors("reading the manifest"):
            return open_manifest(context.folder.fs, path)

    reached("upload.before_send")
    stored = context.client.upload_manifest(
        open_part,
        filename=f"part-{part.index:05d}.jsonl",
        size_bytes=built.bytes,
        on_progress=lambda sent, _size: context.tell(
            Progress("upload", before + min(sent, built.bytes), total, "bytes")
        ),
    )
    reached("upload.after_send")
    if stored.sha256 not in {None, built.sha256}:
        raise ProtocolError(
            f"the router stored part {part.index} with another sha256 than was sent. Nothing was "
            "bought; run again to send it again."
        )
    context.journal.append(
        Uploaded(
            generation=begun[0],
            round=begun[1],
            part=part.index,
            file_id=stored.file_id,
            sha256=built.sha256,
            input_tokens_estimate=stored.input_tokens_estimate,
        ),
        still=lambda state: (
            (state.generation, state.round) == begun and state.parts[part.index].upload is None
        ),
    )


def _is_old(part: PartState) -> bool:
    uploaded_at = part.uploaded_at
    return uploaded_at is None or datetime.now(UTC) - uploaded_at > UPLOAD_KEPT_FOR


def _intend(context: RunContext, part: PartState) -> None:
    state, quote, upload = context.state, part.quote, part.upload
    if quote is None or upload is None or state.quoted is None:
        raise RuntimeError("an intent needs a quote and an upload")
    generation = state.generation
    context.journal.append(
        Intended(
            generation=generation,
            round=state.round,
            part=part.index,
            key=context.identity.idempotency_key(
                generation=generation, part=part.index, resend_round=state.round
            ),
            body=_body(context, part, quote.quote_id, upload),
            quote_id=quote.quote_id,
            quoted_usd=quote.quoted_usd,
            clock_offset_s=state.quoted.clock_offset_s,
            account=context.account,
        )
    )


def _body(context: RunContext, part: PartState, quote_id: str, upload: Uploaded) -> dict[str, Any]:
    route = context.job.route
    return {
        "quote_id": quote_id,
        "input_file_id": upload.file_id,
        "routing_mode": route.routing_mode,
        "privacy_tier": route.privacy_tier,
        "metadata": context.identity.metadata(
            generation=context.state.generation,
            part=part.index,
            manifest_sha256=upload.sha256,
            route=context.state.fingerprint.get("route", ""),
            resend_round=context.state.round,
        ),
    }


def settle_all(context: RunContext) -> datetime | None:
    """Settle every open intent.

    Returns:
        When to look again, if an intent cannot be settled yet; else None.
    """
    moments: list[datetime] = []
    open_parts = context.state.open_intents
    for done, part in enumerate(open_parts):
        context.tell(Progress("submit", done, len(open_parts), "parts"))
        look_again_at = settle_part(context, part)
        if look_again_at is not None:
            moments.append(look_again_at)
    context.tell(Progress("submit", len(open_parts), len(open_parts), "parts"))
    return max(moments, default=None)


def settle_part(context: RunContext, part: PartState) -> datetime | None:
    """Settle one open intent.

    While the run winds down, an intent is sent again only when its quote has expired: before
    that, sending could buy what nobody wants any more.

    Returns:
        When to look again, if it cannot be settled yet; else None.
    """
    if is_winding_down(context.state):
        return _settle_without_buying(context, part)
    return settle(context, part)


def _settle_without_buying(context: RunContext, part: PartState) -> datetime | None:
    intent, quote = part.intent, part.quote
    if intent is None:
        return None
    batch = find_listed(context, part)
    if batch is not None:
        record(context, intent, batch, "listed")
        cancel_open_batches(context)
        return None
    now = context.server_now(intent.clock_offset_s)
    if quote is not None and now < quote.expires_at + _EXPIRY_SLACK:
        return datetime.now(UTC) + (quote.expires_at + _EXPIRY_SLACK - now)
    return settle(context, part)


def cancel_open_batches(context: RunContext) -> None:
    """Ask the API to cancel what is open; what cannot be cancelled any more is left to end."""
    for purchase in context.state.open_batches:
        reached("cancel.before_send")
        try:
            context.client.cancel_batch(purchase.batch_id)
        except (ConflictError, NotFoundError) as error:
            _log.info("batch %s was not cancelled: %s", purchase.batch_id, error.code)
        reached("cancel.after_send")
