"""What a landing is given and what it tells: plain values, without pyarrow.

Example:
    >>> LandingReport.from_dict({"rows": 2, "succeeded": 2, "cost_usd": "0.01"}).cost_usd
    Decimal('0.01')
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from typing import Any, Self

from batchrouter.money import format_usd

STATUSES = ("succeeded", "failed", "invalid_output", "missing", "skipped")
"""Every row of the source lands with exactly one of these in `_status`."""


@dataclass(frozen=True, slots=True)
class PartToLand:
    """One part of a run: its row snapshot, and what came back for it.

    Attributes:
        index: The part's place in the run, from 0; rows land in this order.
        rows_path: The row snapshot on the run's filesystem.
        row_count: How many rows the snapshot must have, skipped ones included.
        artifact_path: The copied artifact on the run's filesystem; None when nothing came.
        batch_id: The batch that was bought for the part; None when nothing was sent.
        batch_state: How the batch ended; it explains the rows without a line.
        batch_error: The batch's own error as (code, message).
    """

    index: int
    rows_path: str
    row_count: int
    artifact_path: str | None = None
    batch_id: str | None = None
    batch_state: str | None = None
    batch_error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LandingIdentity:
    """Whose rows these are: landing the same job and run again replaces them.

    Attributes:
        job_name: The job's name.
        run_key: The orchestrator's name for the execution; lands as `_run_key`.
        run_slug: The run key as a file name, unique among the runs of the job.
        purchase: Tells one purchase of the run from another; what was landed of one is not landed
            again where that would undo what later runs have written.
        again: Land though this purchase was landed, and put its rows over later ones.
        models: What answered, for comments and the table's history.
    """

    job_name: str
    run_key: str
    run_slug: str
    purchase: str = ""
    again: bool = False
    models: str = ""


@dataclass(frozen=True, slots=True)
class LandingReport:
    """The counts of a committed landing; the five statuses add up to `rows`.

    Attributes:
        rows: Rows in the table for this run.
        succeeded: Rows with an output.
        failed: Rows whose item failed; the table has code and message.
        invalid_output: Rows whose answer is not what the job asked for; it is in `_raw_output`.
        missing: Rows that were sent and have no readable line.
        skipped: Rows that the build did not send.
        quarantined: Lines of the artifact that cannot be read.
        unknown_lines: Lines whose item id is of no row of their part.
        duplicate_lines: Lines beyond the first readable one of an item.
        input_tokens: Tokens over all lines that tell them.
        output_tokens: Tokens over all lines that tell them.
        cost_usd: USD over all lines that tell their cost, fee included.
        location: Where the rows are, without credentials.
        bytes: Size of what was written.
        duration_s: Seconds from the first read to the commit.
        error_codes: The twenty most frequent `_error_code` values of the rows that failed, are
            missing or have an invalid output.
        reject_files: Names of the files in the rejects folder, which hold the three kinds of
            rejected lines.
    """

    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    invalid_output: int = 0
    missing: int = 0
    skipped: int = 0
    quarantined: int = 0
    unknown_lines: int = 0
    duplicate_lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal("0.00")
    location: str = ""
    bytes: int = 0
    duration_s: float = 0.0
    error_codes: dict[str, int] = field(default_factory=dict[str, int])
    reject_files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-safe values; money is a decimal string."""
        return asdict(self) | {
            "cost_usd": format_usd(self.cost_usd),
            "reject_files": list(self.reject_files),
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave; fields of a newer version are left out."""
        known = {each.name: told[each.name] for each in fields(cls) if each.name in told}
        known["cost_usd"] = Decimal(str(known.get("cost_usd", "0.00")))
        known["reject_files"] = tuple(known.get("reject_files", ()))
        return cls(**known)
