"""The first rows without an answer, read back from a landed Parquet table.

Only keys, status and error: nothing of what the rows say.
"""

from collections.abc import Mapping
from typing import Any

from prefect_batchrouter.planning import Plan

MOST_ROWS = 50
_COLUMNS = ("_status", "_error_code", "_error_message")
_MOST_MESSAGE_CHARS = 200


def failed_rows(plan: Plan, receipt: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Read up to 50 rows that did not succeed, or count them by error where none can be read.

    Returns:
        The rows, each with the job's key, `_status` and the error, and a sentence about them.
    """
    missed = receipt["row_count"] - receipt["rows"].get("succeeded", 0)
    location = str(receipt["location"])
    if not location.endswith(".parquet"):
        counted = [{"error": code, "rows": n} for code, n in receipt["error_codes"].items()]
        return counted, f"{missed:,} rows did not succeed; they are in {location} by `_status`"
    rows = _read(plan, location)
    shown = f"the first {len(rows)} of {missed:,}" if missed > len(rows) else f"all {missed:,}"
    return rows, f"Rows that did not succeed, {shown}; the rest is in {location} by `_status`"


def _read(plan: Plan, location: str) -> list[dict[str, Any]]:
    import fsspec  # noqa: PLC0415 - only when something failed
    import pyarrow.dataset  # noqa: PLC0415 - as above

    files: Any = fsspec.core
    arrow: Any = pyarrow.dataset
    fs, path = files.url_to_fs(location, **dict(plan.settings.storage_options))
    table = arrow.dataset(path, filesystem=fs, format="parquet")
    columns = [*plan.job.key_columns, *(name for name in _COLUMNS if name in table.schema.names)]
    wanted = arrow.field("_status") != "succeeded"
    found: list[dict[str, Any]] = table.head(MOST_ROWS, columns=columns, filter=wanted).to_pylist()
    return [{name: _shown(value) for name, value in row.items()} for row in found]


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:_MOST_MESSAGE_CHARS]
