"""What is checked of a landed table, from its receipt: no row is read again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import dagster as dg

if TYPE_CHECKING:
    from batchrouter.run import Receipt

ACCOUNTED = "every_row_accounted_for"
FAILED_ROWS = "failed_rows_within_limit"
WITHIN_QUOTE = "settled_within_quote"
NO_DRIFT = "no_schema_drift"

_DESCRIPTIONS = {
    ACCOUNTED: "Each row of the source is in the table, with a status.",
    FAILED_ROWS: "No more rows than allowed failed, came back invalid, or are missing.",
    WITHIN_QUOTE: "What was billed is not above the locked price.",
    NO_DRIFT: "The table has the columns that it had at its last materialization.",
}
_NOT_WELL = ("failed", "invalid_output", "missing")


@dataclass(frozen=True, slots=True)
class BatchrouterChecks:
    """Which checks a table has, and what a failed one does.

    Attributes:
        enabled: False for none.
        max_failed_share: The share of rows, 0 to 1, that may be failed, invalid or missing.
        blocking: A failed check keeps downstream assets of the same run from starting.
        severity: Of a failed check.

    Raises:
        ValueError: The share is none.
    """

    enabled: bool = True
    max_failed_share: float = 0.01
    blocking: bool = False
    severity: Literal["ERROR", "WARN"] = "ERROR"

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"max_failed_share: {self.max_failed_share} is not between 0 and 1")

    def specs(self, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
        """The checks of a table."""
        if not self.enabled:
            return []
        return [
            dg.AssetCheckSpec(name, asset=key, description=told, blocking=self.blocking)
            for name, told in _DESCRIPTIONS.items()
        ]


@dataclass(frozen=True, slots=True)
class Landed:
    """A landed partition, or the whole table without partitions.

    Attributes:
        source_rows: Rows of the source, counted at the build.
        columns: Name and type of each column; None when they cannot be told any more.
    """

    receipt: "Receipt"
    source_rows: int
    columns: tuple[tuple[str, str], ...] | None


def check_results(
    checks: BatchrouterChecks,
    key: dg.AssetKey,
    landed: Sequence[Landed],
    before: Mapping[str, str] | None,
) -> list[dg.AssetCheckResult]:
    """Judge what one step has landed, all partitions together.

    Args:
        checks: The limits.
        key: The table's.
        landed: One a partition.
        before: The columns of the last materialization; None for the first.
    """
    judged = {
        ACCOUNTED: _accounted(landed),
        FAILED_ROWS: _failed_rows(landed, checks.max_failed_share),
        WITHIN_QUOTE: _within_quote(landed),
        NO_DRIFT: _no_drift(landed, before),
    }
    return [
        dg.AssetCheckResult(
            passed=passed,
            asset_key=key,
            check_name=name,
            description=told,
            severity=dg.AssetCheckSeverity[checks.severity],
            metadata=metadata,
        )
        for name, (passed, told, metadata) in judged.items()
    ]


_Judged = tuple[bool, str, dict[str, float | int]]


def _accounted(landed: Sequence[Landed]) -> _Judged:
    in_table = sum(sum(each.receipt.rows.values()) for each in landed)
    in_source = sum(each.source_rows - each.receipt.unchanged for each in landed)
    told = f"{in_table:,} of {in_source:,} rows"
    return in_table == in_source, told, {"rows": in_table, "source_rows": in_source}


def _failed_rows(landed: Sequence[Landed], limit: float) -> _Judged:
    rows = sum(each.receipt.row_count for each in landed)
    bad = sum(each.receipt.rows.get(status, 0) for each in landed for status in _NOT_WELL)
    share = bad / rows if rows else 0.0
    told = f"{bad:,} of {rows:,} rows are not well ({share:.2%}, allowed {limit:.2%})"
    return share <= limit, told, {"failed_rows": bad, "failed_share": share, "limit": limit}


def _within_quote(landed: Sequence[Landed]) -> _Judged:
    quoted = sum(each.receipt.quoted_usd for each in landed)
    unsettled = sum(1 for each in landed if each.receipt.settled_usd is None)
    settled = sum(each.receipt.settled_usd or 0 for each in landed)
    told = f"${settled} of ${quoted}"
    if unsettled:
        told += f"; {unsettled} not settled yet"
    passed = settled <= quoted and not unsettled
    return passed, told, {"settled_usd": float(settled), "quoted_usd": float(quoted)}


def _no_drift(landed: Sequence[Landed], before: Mapping[str, str] | None) -> _Judged:
    now = next((dict(each.columns) for each in landed if each.columns is not None), None)
    if before is None or now is None:
        return True, "there is nothing to compare with", {}
    changes = [f"{name} is gone" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    changes += [
        f"{name} was {before[name]} and is {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    return not changes, "; ".join(changes) or "the same columns", {"changes": len(changes)}
