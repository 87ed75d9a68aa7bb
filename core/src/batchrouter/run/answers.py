"""What a run answers when it is asked to go on: wait, done, or a price."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from batchrouter.run.events import QuotedLane
from batchrouter.run.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing can be done until one of the batches ends, or the deadline comes.

    Attributes:
        batch_ids: What is open; empty when only time must pass.
        deadline_at: When to call `advance()` again even if nothing was heard. Wall clock,
            aware UTC: it survives a restart of whoever waits.
    """

    batch_ids: tuple[str, ...]
    deadline_at: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The table is landed."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class QuoteSummary:
    """The locked price of what is still to buy.

    Attributes:
        total_usd: The most that it can cost.
        budget_usd: The most that the run may cost; None without a bound.
        fits: True when the total, with what was committed before, is inside the budget.
        expires_at: When the first of the quotes ends.
    """

    total_usd: Decimal
    committed_usd: Decimal
    budget_usd: Decimal | None
    item_count: int
    row_count: int
    lanes: tuple[QuotedLane, ...]
    why: str
    expires_at: datetime | None

    @property
    def fits(self) -> bool:
        """True when the run may buy it."""
        return self.budget_usd is None or self.total_usd + self.committed_usd <= self.budget_usd
