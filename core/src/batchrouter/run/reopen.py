"""Opening a run again: what a second look at the same run key may and may not do.

What is open is attached to; what is landed is left alone; what was cancelled, expired or
failed is bought anew only on demand. A job that would buy something else under the same key
is refused, unless nothing was bought yet: then it simply starts over.
"""

from contextlib import suppress
from typing import Literal

from batchrouter._version import __version__
from batchrouter.errors import ConfigError, RunIdentityConflictError, UnsettledIntentError
from batchrouter.run.buying import settle_all
from batchrouter.run.context import RunContext
from batchrouter.run.events import Claimed, GenerationOpened, Opened
from batchrouter.run.journal import LostRaceError
from batchrouter.run.state import RunState

OnRerun = Literal["resume", "rebuy"]


def begin(context: RunContext, on_rerun: OnRerun) -> None:
    """Read the journal, or write its first event, and apply the rules of a second opening.

    Raises:
        RunIdentityConflictError: The job would buy something else under this key.
        JournalError: The journal is damaged or of a newer version.
    """
    if on_rerun not in {"resume", "rebuy"}:
        raise ConfigError(f"on_rerun: {on_rerun!r} is unknown; use 'resume' or 'rebuy'")
    journal = context.journal
    journal.load()
    journal.check_whole()
    fingerprint = context.job.fingerprint()
    if journal.state.opened is None:
        opened = Opened(
            job_name=context.identity.job_name,
            run_key=context.identity.run_key,
            fingerprint=fingerprint,
            package_version=__version__,
        )
        try:
            journal.append(opened)
        except LostRaceError:
            pass
        else:
            return
    if on_rerun == "rebuy":
        _rebuy(context, fingerprint)
    _check_same(context, fingerprint)


def _rebuy(context: RunContext, fingerprint: dict[str, str]) -> None:
    # An intent that cannot be settled: the caller has looked, and says that nothing was bought.
    # A lost race: the other attempt is settling it.
    with suppress(UnsettledIntentError, LostRaceError):
        settle_all(context)
    if not context.state.open_batches:
        start_generation(context, fingerprint, "bought anew on demand")


def _check_same(context: RunContext, fingerprint: dict[str, str]) -> None:
    state = context.state
    changed = sorted(
        name for name in fingerprint if state.fingerprint.get(name) != fingerprint[name]
    )
    if not changed:
        return
    if not state.has_bought and state.landed is None:
        start_generation(context, fingerprint, "the job changed before anything was bought")
        return
    raise RunIdentityConflictError(
        f"run key {context.identity.run_key!r} of job {context.identity.job_name!r} was bought "
        f"with another {', '.join(changed)}. Nothing more was bought. Use another run key, undo "
        "the change, or open it with on_rerun='rebuy' (CLI: --rebuy) to buy it all anew"
        + (" once the open batch has ended or is cancelled." if state.open_batches else ".")
    )


def start_generation(context: RunContext, fingerprint: dict[str, str], reason: str) -> None:
    """Begin anew under the same run key; all that was committed before still counts."""
    before = context.state.generation

    def still(state: RunState) -> bool:
        return state.generation == before

    try:
        context.journal.append(
            GenerationOpened(generation=before + 1, fingerprint=fingerprint, reason=reason),
            still=still,
        )
    except LostRaceError:
        # Another attempt began it; both go on in the same one.
        return


def claim(context: RunContext, attempt: str) -> None:
    """Record that an attempt has taken the run over, unless it is known already."""
    if context.state.claim == attempt:
        return
    context.journal.append(Claimed(attempt=attempt), still=lambda state: state.claim != attempt)
