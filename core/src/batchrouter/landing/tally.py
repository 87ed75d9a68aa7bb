"""The counts of a landing, and the proof that no row was lost before it is committed."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchrouter.errors import LandingError
from batchrouter.landing.rejects import Kind, Rejects
from batchrouter.landing.report import STATUSES, LandingReport, PartToLand
from batchrouter.landing.sinks import Commit

_CODES_TOLD = 20
_EXACT = pa.decimal128(38)
"""Sums of int64 may pass int64, and Arrow would wrap them without a word."""


class Tally:
    """Counts that grow with each batch of landed rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._rejected: Counter[Kind] = Counter()
        self._reject_files: list[str] = []
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost_usd = Decimal(0)
        self._part_rows = 0
        self._last_row = -1

    def add_batch(self, rows: pa.RecordBatch, batch: pa.RecordBatch) -> None:
        """Count one batch of landed rows, and see that the source order goes on.

        Raises:
            LandingError: `_row` does not rise: the snapshots overlap or are out of order.
        """
        self._check_order(rows)
        self.rows += len(batch)
        self._part_rows += len(batch)
        statuses = batch.column("_status")
        self._statuses.update(_counted(statuses))
        without_problem = pa.array(["succeeded", "skipped"])
        has_problem = pc.invert(pc.is_in(statuses, value_set=without_problem))
        codes = batch.column("_error_code").filter(has_problem).fill_null("unknown_error")
        self._codes.update(_counted(codes))
        self._input_tokens += _summed(batch.column("_input_tokens"))
        self._output_tokens += _summed(batch.column("_output_tokens"))
        self._cost_usd += pc.sum(batch.column("_cost_usd")).as_py() or 0

    def _check_order(self, rows: pa.RecordBatch) -> None:
        places = rows.column("_row").to_numpy()
        if len(places) and (places[0] <= self._last_row or (np.diff(places) <= 0).any()):
            raise LandingError(
                f"the row snapshots do not stand in source order after row {self._last_row};"
                " nothing was committed"
            )
        self._last_row = int(places[-1]) if len(places) else self._last_row

    def end_part(self, part: PartToLand) -> None:
        """See that one part gave all of its rows.

        Raises:
            LandingError: The part has other rows than were built.
        """
        if self._part_rows != part.row_count:
            raise LandingError(
                f"part {part.index} gave {self._part_rows} rows and was built with"
                f" {part.row_count}; nothing was committed"
            )
        self._part_rows = 0

    def add_rejects(self, rejects: Rejects) -> None:
        """Count the lines of one part that land nowhere."""
        self._rejected.update(rejects.counts)
        if not rejects.is_empty:
            self._reject_files.append(PurePosixPath(rejects.path).name)

    def to_dict(self) -> dict[str, Any]:
        """Write the counts as JSON-safe values."""
        return {
            "rows": self.rows,
            "statuses": dict(self._statuses),
            "codes": dict(self._codes),
            "rejected": dict(self._rejected),
            "reject_files": self._reject_files,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            "cost_usd": str(self._cost_usd),
            "last_row": self._last_row,
        }

    def add_told(self, told: Mapping[str, Any]) -> None:
        """Add the counts that another process wrote, of rows that follow these."""
        self.rows += told["rows"]
        self._statuses.update(told["statuses"])
        self._codes.update(told["codes"])
        self._rejected.update(told["rejected"])
        self._reject_files += told["reject_files"]
        self._input_tokens += told["input_tokens"]
        self._output_tokens += told["output_tokens"]
        self._cost_usd += Decimal(told["cost_usd"])
        self._last_row = max(self._last_row, told["last_row"])

    def reconcile(self, rows_built: int) -> None:
        """See that every row that was built has exactly one status.

        Raises:
            LandingError: It has not.
        """
        counted = sum(self._statuses[status] for status in STATUSES)
        if not rows_built == self.rows == counted == self._statuses.total():
            raise LandingError(
                f"{rows_built} rows were built, {self.rows} would land, with {counted} statuses;"
                " nothing was committed"
            )

    def report(self, commit: Commit, *, duration_s: float) -> LandingReport:
        """Put the counts together with what the sink committed."""
        return LandingReport(
            rows=self.rows,
            **{status: self._statuses[status] for status in STATUSES},
            quarantined=self._rejected["unreadable"],
            unknown_lines=self._rejected["unknown"],
            duplicate_lines=self._rejected["duplicate"],
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost_usd=self._cost_usd,
            location=commit.location,
            bytes=commit.bytes,
            duration_s=round(duration_s, 3),
            error_codes=dict(self._codes.most_common(_CODES_TOLD)),
            reject_files=tuple(self._reject_files),
        )


def _counted(texts: "pa.Array[Any]") -> dict[str, int]:
    counted: Any = pc.value_counts(texts)
    return {each["values"]: each["counts"] for each in counted.to_pylist()}


def _summed(numbers: "pa.Array[Any]") -> int:
    return int(pc.sum(numbers.cast(_EXACT)).as_py() or 0)
