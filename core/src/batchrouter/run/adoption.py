"""Settling an intent: a purchase was written down, and nobody knows whether it was made.

The recorded body is sent again, to the letter. Whatever the answer, it is a fact about that
one purchase: a batch (202, or a 409 that names one), or a proof that there is none and never
will be. What proves nothing leaves the intent open, and nothing else is bought meanwhile.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from batchrouter.errors import (
    ConflictError,
    NotFoundError,
    RunIdentityConflictError,
    UnsettledIntentError,
)
from batchrouter.killpoints import reached
from batchrouter.run.context import RunContext
from batchrouter.run.events import Bought, Intended, Refused
from batchrouter.run.identity import ROUND
from batchrouter.run.state import PartState, RunState

if TYPE_CHECKING:
    from batchrouter.api.models import Batch

QUOTE_KEPT_FOR = timedelta(days=80)
"""The API keeps quotes for 90 days (contract section 2): within this, `quote_not_found` of a
quote that it once gave proves that it was never accepted."""

LOOK_BACK = timedelta(minutes=10)
"""How long before an intent the listing is searched: more than any skew that a Date shows."""

JUST_CREATED_FOR = timedelta(seconds=60)
"""A 404 for a batch younger than this is a replica that lags, not a batch that is gone."""

LOOK_SOON = timedelta(seconds=2)
"""How long to leave such a batch alone before it is asked for again."""

_PAGE = 200
_MOST_PAGES = 500
_ADOPTABLE = frozenset({"quote_lock_already_accepted", "idempotency_key_reused"})


def settle(context: RunContext, part: PartState) -> datetime | None:
    """Find out what an open intent bought, and journal it.

    Returns:
        When to look again, if the API named a batch that it does not show yet; else None.

    Raises:
        RunIdentityConflictError: The purchase exists and is not what this run would buy.
        UnsettledIntentError: It cannot be decided; a person must look.
        APIError: A refusal that proves nothing (a revoked key, no credits); still open.
        TransportError: No reply; the intent stays open.
    """
    intent = part.intent
    if intent is None:
        return None
    intended_at = part.intended_at or datetime.now(UTC)
    if datetime.now(UTC) - intended_at > QUOTE_KEPT_FOR:
        batch = find_listed(context, part)
        if batch is None:
            raise UnsettledIntentError(_cannot_decide(context, intent))
        record(context, intent, batch, "listed")
        return None
    try:
        reached("submit.before_send")
        batch = context.client.submit_batch(
            intent.body, webhook=webhook_of(context), idempotency_key=intent.key
        )
        reached("submit.after_send")
    except (ConflictError, NotFoundError) as error:
        return _settle_refusal(context, part, intent, error)
    record(context, intent, batch, "replayed" if batch.replayed else "accepted")
    return None


def webhook_of(context: RunContext) -> dict[str, str] | None:
    """Where the API shall tell of the end; holds a secret, so it is never journalled."""
    settings = context.settings
    if settings.webhook_url is None or settings.webhook_secret is None:
        return None
    return {"url": settings.webhook_url, "secret": settings.webhook_secret.get_secret_value()}


def _settle_refusal(
    context: RunContext,
    part: PartState,
    intent: Intended,
    error: ConflictError | NotFoundError,
) -> datetime | None:
    if error.code in _ADOPTABLE:
        batch_id = error.details.get("batch_id")
        if isinstance(batch_id, str):
            return _adopt(context, part, intent, batch_id)
        batch = find_listed(context, part)
        if batch is None:
            raise UnsettledIntentError(_cannot_decide(context, intent)) from error
        record(context, intent, batch, "listed")
    elif error.code == "quote_not_found" and intent.account != context.account:
        raise UnsettledIntentError(_other_account(context, intent)) from error
    elif error.code in {"quote_lock_expired", "quote_not_found"}:
        # A quote is accepted before it can expire, and an accepted one answers otherwise.
        _refuse(context, intent, error.code)
    elif error.code == "file_not_found":
        # The contract checks the file after the quote, but says so only of its own router:
        # the listing confirms that nothing was bought before the upload is made again.
        batch = find_listed(context, part)
        if batch is None:
            _refuse(context, intent, error.code, drop_upload=True)
        else:
            record(context, intent, batch, "listed")
    else:
        raise error
    return None


def _other_account(context: RunContext, intent: Intended) -> str:
    return (
        f"part {intent.part} of run {context.identity.run_key!r} may have been bought with another "
        "base URL or key, and this account does not know its quote. Nothing more was bought. Run "
        "it again with the base URL and a key of the workspace that it was begun with."
    )


def _adopt(
    context: RunContext, part: PartState, intent: Intended, batch_id: str
) -> datetime | None:
    try:
        batch = context.client.retrieve_batch(batch_id)
    except NotFoundError as error:
        intended_at = part.intended_at or datetime.now(UTC)
        if context.age_of(intended_at, intent.clock_offset_s) < JUST_CREATED_FOR:
            return datetime.now(UTC) + LOOK_SOON
        raise UnsettledIntentError(_cannot_decide(context, intent)) from error
    _check_own(context, intent, batch)
    record(context, intent, batch, "adopted")
    return None


def _check_own(context: RunContext, intent: Intended, batch: "Batch") -> None:
    expected: dict[str, str] = intent.body["metadata"]
    found = batch.metadata or {}
    other = sorted(name for name, value in expected.items() if found.get(name) != value)
    if other:
        raise RunIdentityConflictError(
            f"run key {context.identity.run_key!r} of job {context.identity.job_name!r} already "
            f"stands for batch {batch.id}, which differs in {', '.join(other)}. Nothing more was "
            "bought. Use another run key, or put job and source back as they were to adopt it."
        )


def find_listed(context: RunContext, part: PartState) -> "Batch | None":
    """Look for the intent's batch in the listing, back to ten minutes before it was sent.

    Raises:
        UnsettledIntentError: The listing is longer than a bound that no account should reach.
    """
    intent = part.intent
    if intent is None or part.intended_at is None:
        return None
    expected: dict[str, str] = intent.body["metadata"]
    since = part.intended_at + timedelta(seconds=intent.clock_offset_s) - LOOK_BACK
    after: str | None = None
    for _ in range(_MOST_PAGES):
        page = context.client.list_batches(limit=_PAGE, after=after)
        context.note_server_time(page.server_now)
        for batch in page.data:
            found = batch.metadata or {}
            # A round may send all items of the one before: only its number tells them apart.
            if all(found.get(name) == expected.get(name) for name in (*expected, ROUND)):
                return batch
        oldest = page.data[-1].created_at if page.data else None
        if not page.has_more or (oldest is not None and oldest < since):
            return None
        after = page.next_cursor
        if after is None:
            break  # more that cannot be asked for: the first page again would say nothing new
    raise UnsettledIntentError(_cannot_decide(context, intent))


def record(
    context: RunContext,
    intent: Intended,
    batch: "Batch",
    how: Literal["accepted", "replayed", "adopted", "listed"],
) -> None:
    """Journal that a batch stands for the intent.

    Raises:
        LostRaceError: Another attempt has settled it.
    """
    total = batch.quoted_total
    offset_s = context.note_server_time(batch.server_now)
    context.journal.append(
        Bought(
            generation=intent.generation,
            round=intent.round,
            part=intent.part,
            batch_id=batch.id,
            quoted_usd=total.amount if total is not None else intent.quoted_usd,
            deadline_at=batch.deadline_at,
            clock_offset_s=intent.clock_offset_s if offset_s is None else offset_s,
            how=how,
        ),
        still=lambda state: _is_open(state, intent),
    )


def _refuse(context: RunContext, intent: Intended, code: str, *, drop_upload: bool = False) -> None:
    context.journal.append(
        Refused(
            generation=intent.generation,
            round=intent.round,
            part=intent.part,
            quote_id=intent.quote_id,
            code=code,
            drop_upload=drop_upload,
        ),
        still=lambda state: _is_open(state, intent),
    )


def _is_open(state: RunState, intent: Intended) -> bool:
    if (state.generation, state.round) != (intent.generation, intent.round):
        return False
    return state.parts[intent.part].intent == intent


def _cannot_decide(context: RunContext, intent: Intended) -> str:
    return (
        f"part {intent.part} of run {context.identity.run_key!r} may have been bought with quote "
        f"{intent.quote_id}, and the API cannot tell any more. Nothing more was bought. Look for "
        f"a batch with metadata batchrouter_run_id={context.identity.run_id} at the router; if "
        "there is none, open the run with on_rerun='rebuy' (CLI: --rebuy) to buy it anew."
    )
