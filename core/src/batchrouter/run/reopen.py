"""Opening a run again: what a second look at the same run key may and may not do.

What is open is attached to; what is landed is left alone; what was cancelled or has expired is
bought only on demand, and then only what did not come. A job that would buy something else under
the same key is refused, unless nothing was bought yet: then it simply starts over.
"""

from contextlib import suppress
from typing import Literal

from batchrouter._version import __version__
from batchrouter.errors import (
    ConfigError,
    RunIdentityConflictError,
    UnsettledIntentError,
    WaitTimeoutError,
)
from batchrouter.run.buying import settle_part
from batchrouter.run.context import RunContext
from batchrouter.run.decide import has_rest
from batchrouter.run.events import Claimed, GenerationOpened, Opened
from batchrouter.run.journal import LostRaceError
from batchrouter.run.outcome import note_ends
from batchrouter.run.state import RunState

_NEEDED = frozenset({"manifest", "rows", "artifact"})
"""What the rest is made of: the lines to send again, and the results to land beside theirs."""

OnRerun = Literal["resume", "rebuy"]


def begin(context: RunContext, on_rerun: OnRerun, attempt: str | None = None) -> None:
    """Read the journal, or write its first event, and apply the rules of a second opening.

    A rebuy is granted to an attempt once: it claims the run before it buys, so an attempt that
    has claimed it before was granted its rebuy, and goes on with that.

    Raises:
        RunIdentityConflictError: The job would buy something else under this key.
        WaitTimeoutError: A rebuy was asked for, and an old purchase may still come about.
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
            rounds=context.rounds.most,
        )
        try:
            journal.append(opened)
        except LostRaceError:
            pass
        else:
            return
    if on_rerun == "rebuy" and attempt not in journal.state.claims:
        _rebuy(context, fingerprint)
    _check_same(context, fingerprint)


def _rebuy(context: RunContext, fingerprint: dict[str, str]) -> None:
    """Begin the generation after the one that is seen now, once, whoever else does so too.

    When another attempt has begun it first, the demand is met: this one attaches to it.
    """
    unwanted = context.state.generation
    while context.state.generation == unwanted:
        try:
            given_up = _settle_each(context)
            # The API decides what is open: its end may have come while nobody looked.
            note_ends(context, give_up_gone=True)
            if context.state.generation == unwanted and not context.state.open_batches:
                _start_generation(context, fingerprint, "bought anew on demand", given_up)
        except LostRaceError:
            continue  # another attempt moves this run along: look again at what it wrote
        return


def _settle_each(context: RunContext) -> frozenset[int]:
    """Adopt every purchase that exists; return the parts of which nobody can tell.

    The caller has looked for those, and says by asking for a rebuy that nothing was bought.
    """
    given_up: set[int] = set()
    for part in context.state.open_intents:
        try:
            look_again_at = settle_part(context, part)
        except UnsettledIntentError:
            given_up.add(part.index)
            continue
        if look_again_at is not None:
            raise WaitTimeoutError(
                f"part {part.index} of run {context.identity.run_key!r} was being bought when it "
                f"was cancelled, and may still be until {look_again_at:%H:%M:%SZ}. Nothing was "
                "bought anew; ask again after that."
            )
    return frozenset(given_up)


def _check_same(context: RunContext, fingerprint: dict[str, str]) -> None:
    while changed := _changed(context.state, fingerprint):
        state = context.state
        if state.has_bought:
            first = " once the open batch has ended or is cancelled" if state.open_batches else ""
            was = "was" if state.current else "may have been"
            raise RunIdentityConflictError(
                f"run key {context.identity.run_key!r} of job {context.identity.job_name!r} {was} "
                f"bought with another {', '.join(changed)}. Nothing more was bought. Use another "
                "run key, undo the change, or open it with on_rerun='rebuy' (CLI: --rebuy) to buy "
                f"it all anew{first}."
            )
        # Lost to another attempt: it may have bought meanwhile, so both are asked again.
        with suppress(LostRaceError):
            _start_generation(context, fingerprint, "the job changed before anything was bought")


def _changed(state: RunState, fingerprint: dict[str, str]) -> list[str]:
    return sorted(name for name in fingerprint if state.fingerprint.get(name) != fingerprint[name])


def _start_generation(
    context: RunContext,
    fingerprint: dict[str, str],
    reason: str,
    given_up: frozenset[int] = frozenset(),
) -> None:
    """Begin anew under the same run key; all that was committed before still counts.

    Raises:
        LostRaceError: Another attempt began a generation, or bought in this one.
    """
    before = context.state.generation

    def still(state: RunState) -> bool:
        intents = {part.index for part in state.open_intents}
        return state.generation == before and intents <= given_up and not state.open_batches

    context.journal.append(
        GenerationOpened(
            generation=before + 1,
            fingerprint=fingerprint,
            reason=reason,
            continues=_continues(context.state, fingerprint),
        ),
        still=still,
    )


def _continues(state: RunState, fingerprint: dict[str, str]) -> bool:
    """True when what came can be kept, and only the rest has to be bought."""
    is_same = not _changed(state, fingerprint)
    return is_same and has_rest(state) and not _NEEDED.intersection(state.removed)


def claim(context: RunContext, attempt: str) -> None:
    """Record that an attempt has taken the run over, unless it is known already."""
    # A lost race: the same attempt has claimed it from another process.
    with suppress(LostRaceError):
        if context.state.claim != attempt:
            context.journal.append(
                Claimed(attempt=attempt), still=lambda state: state.claim != attempt
            )
