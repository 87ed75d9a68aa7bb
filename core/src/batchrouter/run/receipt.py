"""What a finished run says of itself: ids, counts and money, small enough for any XCom.

No rows, no secrets, no signed URLs; under 2 KB as JSON.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from batchrouter.money import format_usd
from batchrouter.run.decide import parts_to_buy, was_sent
from batchrouter.run.events import LaneOutcome
from batchrouter.run.state import Purchase, RunState

_SHOWN = 8
_MOST_BYTES = 2000
_LONG_NAME_BYTES = 400
_LISTS = ("lanes", "batch_ids", "error_codes", "rounds")

STATUSES = ("succeeded", "failed", "invalid_output", "missing", "skipped")


@dataclass(frozen=True, slots=True)
class LaneReceipt:
    """What one lane did, over all batches of the run."""

    provider: str
    model: str
    items: int
    completed: int
    failed: int
    settled_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class RoundReceipt:
    """One round: what was sent in it, and what that cost.

    Attributes:
        round: 0 for that of all items, then counted on.
        items: Requests that were bought.
        quoted_usd: Their locked price.
        settled_usd: What they cost; None while the API has not settled a batch.
    """

    round: int
    items: int
    quoted_usd: Decimal
    settled_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The end of a run.

    Attributes:
        outcome: ``landed`` when every batch succeeded; ``partial`` when what came of a
            cancelled, expired or stopped purchase was landed.
        rows: Rows by status; they add up to the rows of the source.
        quoted_usd: The locked price of all batches of the run, over all generations.
        settled_usd: What they cost; never above `quoted_usd`. None while the API has not
            settled a batch, or of a purchase that could never be settled.
        rounds: What the table's rows are from: the first purchase, and each round that sent some
            of its items again.
        rounds_ended: Why a further round was not bought, such as that it did not fit into the
            budget; empty when none was wanted.
        saved_requests: Rows that repeat another row's request and took its answer (``dedupe``).
        unchanged: Rows that were not bought, since the table held them already with the same
            request (``incremental``); they are not in `rows`.
        location: Where the table is.
        quarantined: Artifact lines that could not be read; they are in the run folder.
        batch_ids: The first eight; `batch_count` has all.
    """

    job: str
    run_key: str
    outcome: Literal["landed", "partial"]
    generation: int
    rows: dict[str, int]
    row_count: int
    quoted_usd: Decimal
    settled_usd: Decimal | None
    budget_usd: Decimal | None
    lanes: tuple[LaneReceipt, ...]
    batch_ids: tuple[str, ...]
    batch_count: int
    input_tokens: int
    output_tokens: int
    quarantined: int
    saved_requests: int
    unchanged: int
    rounds: tuple[RoundReceipt, ...]
    rounds_ended: str
    location: str
    error_codes: dict[str, int]
    started_at: datetime
    finished_at: datetime

    @property
    def duration_s(self) -> float:
        """Seconds from the run's first event to the landed table."""
        return (self.finished_at - self.started_at).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON's types: money as decimal strings, times in RFC 3339.

        Lists are cut short where the whole would pass 2 KB: what no longer fits into an XCom
        is in the run folder.
        """
        plain = asdict(self)
        for name in ("quoted_usd", "settled_usd", "budget_usd"):
            plain[name] = _money(plain[name])
        plain["lanes"] = [
            {**lane, "settled_usd": _money(lane["settled_usd"])} for lane in plain["lanes"]
        ]
        plain["rounds"] = [
            {
                **each,
                "quoted_usd": _money(each["quoted_usd"]),
                "settled_usd": _money(each["settled_usd"]),
            }
            for each in plain["rounds"]
        ]
        plain["batch_ids"] = list(plain["batch_ids"])
        plain["started_at"] = self.started_at.isoformat()
        plain["finished_at"] = self.finished_at.isoformat()
        plain["duration_s"] = round(self.duration_s, 3)
        return _small(plain)


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else format_usd(amount)


def _small(plain: dict[str, Any]) -> dict[str, Any]:
    """Shorten long names, then the lists, until it is under 2 KB; counts and money stay."""
    for name in ("run_key", "location", "rounds_ended"):
        while _size(plain) > _MOST_BYTES and _size(plain[name]) > _LONG_NAME_BYTES:
            plain[name] = f"{plain[name][: len(plain[name]) // 2]}…"
    while _size(plain) > _MOST_BYTES:
        longest = max(_LISTS, key=lambda name: _size(plain[name]))
        if not plain[longest]:
            break
        if longest == "error_codes":
            plain[longest].popitem()
        else:
            plain[longest].pop()
    return plain


def _size(value: Any) -> int:
    return len(json.dumps(value))


def receipt_of(state: RunState, *, job_name: str, budget_usd: Decimal | None) -> Receipt:
    """Add up a landed run.

    Raises:
        RuntimeError: The run is not landed; the caller decided wrongly.
    """
    if state.landed is None or state.opened is None:
        raise RuntimeError("only a landed run has a receipt")
    if state.opened_at is None or state.landed_at is None:
        raise RuntimeError("only a landed run has a receipt")
    report = state.landed.report
    purchases = list(state.purchases.values())
    settled = [each.ended.settled_usd if each.ended else None for each in purchases]
    known = [amount for amount in settled if amount is not None]
    settles = len(known) == len(settled) and not state.abandoned_usd
    ended = state.rounds_ended
    batch_ids = [each.batch_id for each in purchases]
    return Receipt(
        job=job_name,
        run_key=state.opened.run_key,
        outcome="landed" if _is_whole(state) else "partial",
        generation=state.generation,
        rows={status: int(report.get(status, 0)) for status in STATUSES},
        row_count=int(report["rows"]),
        quoted_usd=sum((each.quoted_usd for each in purchases), state.abandoned_usd),
        settled_usd=sum(known, Decimal(0)) if settles else None,
        budget_usd=budget_usd,
        lanes=_lanes(state),
        batch_ids=tuple(batch_ids[:_SHOWN]),
        batch_count=len(batch_ids),
        input_tokens=int(report.get("input_tokens", 0)),
        output_tokens=int(report.get("output_tokens", 0)),
        quarantined=int(report.get("quarantined", 0)),
        saved_requests=int((state.manifest or {}).get("repeated_count", 0)),
        unchanged=int((state.manifest or {}).get("unchanged_count", 0)),
        rounds=_rounds(state),
        rounds_ended=ended.reason if ended and ended.code != "nothing_to_resend" else "",
        location=str(report["location"]),
        error_codes=dict(list(report.get("error_codes", {}).items())[:_SHOWN]),
        started_at=state.opened_at,
        finished_at=state.landed_at,
    )


def _is_whole(state: RunState) -> bool:
    """True when every item came to its own end, be it after having been sent again."""
    if parts_to_buy(state):
        return False
    return all(
        each.ended is not None
        and (each.ended.state == "succeeded" or (was_sent(each) and _is_resent(state, each)))
        for each in state.current
        if each.round >= state.rest_round
    )


def _is_resent(state: RunState, purchase: Purchase) -> bool:
    """True when a batch of which nothing succeeded was sent again, or is that what was."""
    return purchase.round > state.rest_round or purchase.round < state.round


def _rounds(state: RunState) -> tuple[RoundReceipt, ...]:
    receipts: list[RoundReceipt] = []
    for number, manifest in enumerate([state.manifest or {}, *state.resent]):
        bought = [each for each in state.current if each.round == number]
        items = {int(part["index"]): int(part["item_count"]) for part in manifest.get("parts", [])}
        settled = [each.ended.settled_usd if each.ended else None for each in bought]
        known = [amount for amount in settled if amount is not None]
        if bought:
            receipts.append(
                RoundReceipt(
                    round=number,
                    items=sum(items.get(each.part, 0) for each in bought),
                    quoted_usd=sum((each.quoted_usd for each in bought), Decimal(0)),
                    settled_usd=sum(known, Decimal(0)) if len(known) == len(settled) else None,
                )
            )
    return tuple(receipts)


def _lanes(state: RunState) -> tuple[LaneReceipt, ...]:
    groups: dict[tuple[str, str], list[LaneOutcome]] = {}
    for purchase in state.purchases.values():
        for lane in purchase.ended.lanes if purchase.ended else ():
            groups.setdefault((lane.provider, lane.model), []).append(lane)
    summed = [
        LaneReceipt(
            provider=provider,
            model=model,
            items=sum(lane.items for lane in lanes),
            completed=sum(lane.completed for lane in lanes),
            failed=sum(lane.failed for lane in lanes),
            settled_usd=sum((lane.settled_usd or Decimal(0) for lane in lanes), Decimal(0))
            if any(lane.settled_usd is not None for lane in lanes)
            else None,
        )
        for (provider, model), lanes in groups.items()
    ]
    return tuple(summed[:_SHOWN])
