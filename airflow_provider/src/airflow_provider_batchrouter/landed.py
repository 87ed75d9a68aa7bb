"""What a landed table tells Airflow: asset events with its counts and cost, and a verdict."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrouter import Receipt

_FORMAT = re.compile(r"[a-z]{2,}:(?!//)")

_TOLD = (
    "job",
    "run_key",
    "outcome",
    "rows",
    "row_count",
    "quoted_usd",
    "settled_usd",
    "location",
    "batch_count",
)


def tell_assets(operator: Any, context: Mapping[str, Any], receipt: Mapping[str, Any]) -> None:
    """Log what was landed, and put counts and cost into the events of the task's outlets.

    An `AssetAlias` gets the table's own location as its asset, decided now; an `Asset` keeps
    its own name.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias  # noqa: PLC0415 - with a task

    rows = ", ".join(f"{count} {status}" for status, count in receipt["rows"].items() if count)
    operator.log.info(
        "%s: %d rows (%s) at %s; settled %s of quoted %s USD",
        receipt["outcome"],
        receipt["row_count"],
        rows,
        receipt["location"],
        receipt["settled_usd"],
        receipt["quoted_usd"],
    )
    events = context.get("outlet_events")
    if events is None:
        return
    extra = {name: receipt[name] for name in _TOLD}
    for outlet in operator.outlets or ():
        if isinstance(outlet, AssetAlias):
            events[outlet].add(
                Asset(uri=asset_uri(operator.table_location or receipt["location"])), extra=extra
            )
        elif isinstance(outlet, Asset):
            events[outlet].extra.update(extra)


def asset_uri(location: str) -> str:
    """A table's location as a URI, which assets are known by.

    Example:
        >>> asset_uri("/lake/labelled"), asset_uri("s3://lake/labelled")
        ('file:///lake/labelled', 's3://lake/labelled')
    """
    if "://" in location:
        return location
    if scheme := _FORMAT.match(location):  # delta:lake/labelled
        location = location[scheme.end() :]
    from pathlib import Path  # noqa: PLC0415 - rarely needed

    return Path(location).expanduser().resolve().as_uri()


def check_share(receipt: "Receipt", most: float) -> None:
    """Refuse a table of which too many rows did not succeed; it is landed all the same.

    Raises:
        BatchFailedError: More than the share.
    """
    from batchrouter.errors import BatchFailedError  # noqa: PLC0415 - a DAG file need not pay

    due = receipt.row_count - receipt.rows.get("skipped", 0)
    failed = due - receipt.rows.get("succeeded", 0)
    if due and failed / due > most:
        rows = ", ".join(f"{count} {status}" for status, count in receipt.rows.items() if count)
        raise BatchFailedError(
            f"{failed} of {due} rows did not succeed ({rows}), more than max_failed_share="
            f"{most:g}. The table is landed at {receipt.location}, each row with its _status and"
            " _error_code."
        )
