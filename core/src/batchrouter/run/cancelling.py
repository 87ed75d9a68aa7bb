"""Stopping a run: by whoever has its job, or by whoever knows no more than its names.

A trigger that is killed, or a task that cleans up after another, has no job at hand: prompts
and tables do not travel with an orchestrator's bookkeeping. The run's folder has all it takes.
"""

import time
from typing import TYPE_CHECKING

from batchrouter.api.settings import Settings, resolve_settings
from batchrouter.run.buying import cancel_open_batches, settle_all
from batchrouter.run.context import RunContext
from batchrouter.run.decide import Step, decide
from batchrouter.run.events import CancelAsked
from batchrouter.run.identity import RunIdentity
from batchrouter.run.steps import until_settled

if TYPE_CHECKING:
    from batchrouter.api.client import Client

GRACE_S = 5.0
"""How long a successor may take to claim a run whose attempt is being cancelled."""


def cancel_run(
    job_name: str,
    run_key: str,
    *,
    settings: Settings | None = None,
    client: "Client | None" = None,
    reason: str = "cancelled by the caller",
    attempt: str | None = None,
    grace_s: float = GRACE_S,
) -> bool:
    """Stop a run by its names; does what `Run.cancel` does, and needs no job.

    Args:
        job_name: The job's own name.
        run_key: As the run was opened with.
        settings: Where runs are, and the account; default: the client's, else the environment's.
        client: The API's client; default: one from the settings.
        reason: Recorded in the journal.
        attempt: Act only if this is still the newest claim after the grace.
        grace_s: How long a successor may take to claim, in seconds.

    Returns:
        False when there was nothing to cancel: no such run, one that has ended, or another
        attempt owns it.

    Raises:
        APIError: The API refuses; the wish is recorded and the next `advance` repeats it.
        TransportError: No reply; likewise.
        JournalError: The run folder is damaged or of a newer version.

    Example:
        >>> cancel_run("label-tickets", "2026-11-22")     # doctest: +SKIP
        True
    """
    settings = resolve_settings(settings or (client.settings if client else None))
    identity = RunIdentity(
        namespace=settings.identity_namespace, job_name=job_name, run_key=run_key
    )
    context = RunContext.of(identity, settings, client)
    try:
        if context.journal.load().opened is None:
            return False
        return cancel(context, reason, attempt=attempt, grace_s=grace_s)
    finally:
        context.release_client()


def cancel(context: RunContext, reason: str, *, attempt: str | None, grace_s: float) -> bool:
    """See `Run.cancel`."""
    if attempt is not None:
        time.sleep(grace_s)
    state = context.journal.load()
    if state.landed is not None or (attempt is not None and state.claim != attempt):
        return False
    if state.cancel_asked is None and decide(state, context.rounds) is Step.GIVE_UP:
        return False
    until_settled(context, lambda: _ask_to_cancel(context, reason))
    until_settled(context, lambda: settle_all(context))
    cancel_open_batches(context)
    return True


def _ask_to_cancel(context: RunContext, reason: str) -> None:
    if context.state.cancel_asked is None:
        context.journal.append(
            CancelAsked(reason=reason), still=lambda state: state.cancel_asked is None
        )
