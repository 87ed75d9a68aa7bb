"""Doing what `decide` says: one step after the other, until only time or the API can go on.

Each step appends to the journal, and the next one is decided from it. A step that lost a race
is no failure: another attempt has moved the run along, so the journal is read and asked again.
"""

import logging
from collections.abc import Callable

from batchrouter import tracing
from batchrouter.errors import LandingError, ServerError, StorageError
from batchrouter.run import outcome
from batchrouter.run.answers import Done, Waiting
from batchrouter.run.building import build
from batchrouter.run.buying import buy, settle_all
from batchrouter.run.collecting import collect
from batchrouter.run.context import RunContext
from batchrouter.run.decide import NO_ROUNDS, RetryRounds, Step, decide
from batchrouter.run.journal import LostRaceError
from batchrouter.run.receipt import Receipt, receipt_of
from batchrouter.run.retention import remove_due
from batchrouter.run.rounds import begin_round

_log = logging.getLogger(__name__)

_MOST_STEPS = 40
"""Steps of one round: a dozen carry it from start to end; a quote that the API calls expired as
often as this means a broken clock."""

_BUYING = frozenset({Step.BUILD, Step.BUY, Step.RESEND})


def advance(context: RunContext) -> Waiting | Done:
    """Take steps until the run waits or is done.

    Raises:
        ServerError: Quotes expire as fast as they are given.
        BatchrouterError: As the step.
    """
    answer = _take_while(context, frozenset(Step), context.rounds)
    assert answer is not None, "every step is allowed"
    return answer


def submit(context: RunContext) -> None:
    """Take only the steps that buy; retry rounds are left to `advance`.

    Raises:
        ServerError: Quotes expire as fast as they are given.
        BatchrouterError: As the step.
    """
    # Which items are the rest of an earlier purchase, only its results say.
    _take_while(context, _BUYING | {Step.SETTLE, Step.COLLECT})


def land(context: RunContext) -> Waiting | Done:
    """Take only the steps that buy nothing new: what came is landed without a further round.

    Raises:
        LandingError: Something is still to buy.
        BatchrouterError: As the step.
    """
    answer = _take_while(context, frozenset(Step) - _BUYING)
    if answer is None:
        raise LandingError(
            f"run {context.identity.run_key!r} is not bought yet, or not whole: execute or submit "
            "it first. Nothing was bought or landed."
        )
    return answer


def until_settled(context: RunContext, action: Callable[[], object]) -> None:
    """Do something that appends, again after each lost race: each is another one's progress."""
    while True:
        try:
            action()
        except LostRaceError:
            context.journal.load()
        else:
            return


def receipt(context: RunContext) -> Receipt:
    """The receipt of a landed run."""
    return receipt_of(
        context.state, job_name=context.identity.job_name, budget_usd=context.most_usd
    )


def _next(context: RunContext, rounds: RetryRounds) -> Step:
    return decide(context.journal.load(), rounds)


def _take_while(
    context: RunContext, allowed: frozenset[Step], rounds: RetryRounds = NO_ROUNDS
) -> Waiting | Done | None:
    """Take steps until one has an answer, or is not allowed: then None."""
    taken = 0
    while taken < _MOST_STEPS:
        step = _next(context, rounds)
        if step not in allowed:
            return None
        try:
            with tracing.span(f"run.{step.value}", attributes=_span_attributes(context)):
                answer = _take(context, step)
        except LostRaceError:
            _log.info("another attempt at this run was faster; deciding again")
            continue
        except StorageError:
            # The winner of a race removes what the loser was still writing.
            if _next(context, rounds) is step:
                raise
            continue
        if answer is not None:
            return answer
        taken = 0 if step is Step.RESEND else taken + 1
    raise _clock_error()


def _span_attributes(context: RunContext) -> dict[str, str]:
    return {
        "batchrouter.job.name": context.identity.job_name,
        "batchrouter.run.key": context.identity.run_key,
    }


def _take(context: RunContext, step: Step) -> Waiting | Done | None:
    match step:
        case Step.BUILD:
            build(context)
        case Step.BUY:
            outcome.check_table(context)
            buy(context)
        case Step.SETTLE:
            look_again_at = settle_all(context)
            if look_again_at is not None:
                # Whatever else is open: until then nothing can be decided.
                return Waiting((), look_again_at)
        case Step.WATCH:
            look_again_at = outcome.look(context)
            if look_again_at is not None:
                return Waiting(_open_ids(context), look_again_at)
        case Step.COLLECT:
            collect(context)
        case Step.RESEND:
            begin_round(context)
        case Step.LAND:
            outcome.land(context)
        case Step.GIVE_UP:
            raise outcome.nothing_to_land(context)
        case Step.FINISHED:
            remove_due(context)
            return Done(receipt(context))
    return None


def _open_ids(context: RunContext) -> tuple[str, ...]:
    return tuple(each.batch_id for each in context.state.open_batches)


def _clock_error() -> ServerError:
    return ServerError(
        "the API called fresh quotes expired again and again: its clock cannot be trusted. "
        "Nothing was bought that is not in the journal.",
        status=503,
        code="quote_lock_expired",
    )
