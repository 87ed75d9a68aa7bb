"""The state machine: from what the journal says to the one thing to do next.

A pure function, so that any process that reads the same journal decides the same, and so that
the whole machine can be read on one screen::

    build → buy ⇄ settle → watch → collect → land → finished
             ↑                        ↓
             └──────── resend ────────┘
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from batchrouter.run.state import PartState, Purchase, RunState


class Step(Enum):
    """What to do next."""

    BUILD = "build"
    SETTLE = "settle"
    BUY = "buy"
    WATCH = "watch"
    COLLECT = "collect"
    RESEND = "resend"
    LAND = "land"
    GIVE_UP = "give_up"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class RetryRounds:
    """How many rounds a job allows: of failed and missing items, and of unfitting answers."""

    failed: int = 0
    invalid: int = 0

    @property
    def most(self) -> int:
        """Rounds after the first in all: one round may send both kinds."""
        return max(self.failed, self.invalid)


NO_ROUNDS = RetryRounds()


def rounds_told(state: RunState) -> RetryRounds:
    """How many rounds the job allowed when the run was opened: for those who have no job."""
    return RetryRounds(failed=state.opened.rounds if state.opened else 0)


_WAS_SENT = frozenset({"succeeded", "failed"})


def decide(state: RunState, rounds: RetryRounds = NO_ROUNDS) -> Step:
    """Choose the next step.

    Args:
        state: What the journal says.
        rounds: What the job allows; without it nothing is sent again.

    An open intent comes before everything else: until it is settled, nobody knows what has
    been bought. After a cancel, or a stop at the budget, nothing more is bought; what came is
    still collected and landed.
    """
    winding_down = is_winding_down(state)
    rules = (
        (state.landed is not None, Step.FINISHED),
        (bool(state.open_intents), Step.SETTLE),
        (state.manifest is None and winding_down, Step.GIVE_UP),
        (state.manifest is None, Step.BUILD),
        (bool(parts_to_buy(state)) and not winding_down, Step.BUY),
        (bool(state.open_batches), Step.WATCH),
        (bool(batches_to_collect(state)), Step.COLLECT),
        (round_is_due(state, rounds), Step.RESEND),
        (_has_something_to_land(state), Step.LAND),
    )
    return next((step for holds, step in rules if holds), Step.GIVE_UP)


def is_winding_down(state: RunState) -> bool:
    """True when nothing more may be bought in this generation."""
    return state.cancel_asked is not None or state.stopped is not None


def parts_to_buy(state: RunState) -> list[PartState]:
    """Parts with items that no batch and no open intent stands for, and that shall be bought."""
    if state.rounds_ended is not None:
        return []
    counts = item_counts(state)
    return [
        part
        for part in state.parts.values()
        if part.bought is None and part.intent is None and counts[part.index] > 0
    ]


def round_is_due(state: RunState, rounds: RetryRounds) -> bool:
    """True when items may have to be sent again; which, only the results say.

    What was cancelled or has expired is never sent again by itself: nobody knows whether it is
    wanted any more. A demand for the rest sends it.
    """
    if is_winding_down(state) or state.rounds_ended is not None or state.manifest is None:
        return False
    if not {"manifest", "rows"}.isdisjoint(state.removed):
        return False
    if state.is_rest_due:
        return True
    if state.retry_count >= rounds.most:
        return False
    if state.retry_count and not all(was_sent(each) for each in newest_round(state)):
        return False
    return any(was_sent(each) for each in newest_round(state))


def has_rest(state: RunState) -> bool:
    """True when some results came, and some items were never sent to their end.

    What was cancelled, has expired, or was never bought is the rest; nothing else of the run
    needs to be bought again.
    """
    if state.manifest is None or not any(has_output(each) for each in state.current):
        return False
    counts = item_counts(state)
    is_unbought = state.rounds_ended is None and any(
        part.bought is None and counts[part.index] > 0 for part in state.parts.values()
    )
    newest = (each for each in state.current if each.round >= state.rest_round)
    return is_unbought or any(each.ended is not None and not was_sent(each) for each in newest)


def newest_round(state: RunState) -> list[Purchase]:
    """The batches of the newest round."""
    return [each for each in state.current if each.round == state.round]


def was_sent(purchase: Purchase) -> bool:
    """True when the batch came to its own end, be it that every item of it failed."""
    return purchase.ended is not None and purchase.ended.state in _WAS_SENT


def batches_to_collect(state: RunState) -> list[Purchase]:
    """Ended batches with output that is not in the run folder yet."""
    return [each for each in state.current if has_output(each) and each.collected is None]


def has_output(purchase: Purchase) -> bool:
    """True when at least one item of the batch has a result worth landing."""
    ended = purchase.ended
    if purchase.collected is not None:
        return purchase.collected.artifact_name is not None
    return ended is not None and (ended.state == "succeeded" or ended.completed > 0)


def item_counts(state: RunState) -> dict[int, int]:
    """Items of each part of the newest round."""
    return _item_counts(state.resent[-1] if state.resent else state.manifest)


def _item_counts(manifest: dict[str, Any] | None) -> dict[int, int]:
    parts = (manifest or {}).get("parts", [])
    return {int(part["index"]): int(part["item_count"]) for part in parts}


def _has_something_to_land(state: RunState) -> bool:
    # A run that bought nothing because the table is empty lands an empty table. A run whose
    # every item failed leaves yesterday's table alone.
    nothing_to_buy = not any(_item_counts(state.manifest).values())
    return nothing_to_buy or any(has_output(each) for each in state.current)
