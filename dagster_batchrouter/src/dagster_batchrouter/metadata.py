"""What Dagster shows of a submission and of a landed table: ids, counts and money, under 2 KB.

Nothing here holds a row, a key or a signed URL. Numbers stand as numbers, so that Dagster plots
them over time and over partitions.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_batchrouter.checks import Landed

if TYPE_CHECKING:
    from batchrouter.run import QuoteSummary, Receipt, RunStatus

RUN_KEY = "batchrouter/run_key"
BATCH_IDS = "batchrouter/batch_ids"
STAGE = "batchrouter/stage"
COLUMN_SCHEMA = "dagster/column_schema"

MOST_BATCH_IDS = 100
"""More parts than this need 900 million rows; a sensor then waits for the first hundred."""

_SHOWN = 12


def submission_metadata(
    status: "RunStatus", quote: "QuoteSummary | None", base_url: str
) -> dict[str, Any]:
    """Tell what was bought, at which price."""
    metadata: dict[str, Any] = {
        RUN_KEY: status.run_key,
        STAGE: status.stage,
        BATCH_IDS: list(status.batch_ids[-MOST_BATCH_IDS:]),
        "batchrouter/rows": status.row_count or 0,
        "batchrouter/items": status.item_count or 0,
        "batchrouter/committed_usd": float(status.committed_usd),
        "batchrouter/generation": status.generation,
    }
    if status.batch_ids:
        metadata["batchrouter/batch"] = _batch_url(base_url, status.batch_ids[-1])
    if quote is not None and quote.lanes:
        metadata["batchrouter/quoted_usd"] = float(quote.total_usd)
        metadata["batchrouter/quote"] = dg.MetadataValue.md(_quote_text(quote))
    return metadata


def table_metadata(landed: Landed, base_url: str, *, partitioned: bool) -> dict[str, Any]:
    """Tell what was landed, and what it cost."""
    receipt = landed.receipt
    count = "dagster/partition_row_count" if partitioned else "dagster/row_count"
    metadata: dict[str, Any] = {
        count: receipt.row_count,
        "dagster/uri": receipt.location,
        RUN_KEY: receipt.run_key,
        BATCH_IDS: list(receipt.batch_ids),
        "batchrouter/outcome": receipt.outcome,
        "batchrouter/quoted_usd": float(receipt.quoted_usd),
        "batchrouter/input_tokens": receipt.input_tokens,
        "batchrouter/output_tokens": receipt.output_tokens,
        "batchrouter/duration_s": receipt.duration_s,
        "batchrouter/receipt": dg.MetadataValue.md(_receipt_text(receipt)),
        **{f"batchrouter/rows_{status}": rows for status, rows in receipt.rows.items()},
    }
    if receipt.settled_usd is not None:
        metadata["batchrouter/settled_usd"] = float(receipt.settled_usd)
    if receipt.lanes:
        metadata["batchrouter/lanes"] = _lanes_table(receipt)
    if receipt.batch_ids:
        metadata["batchrouter/batch"] = _batch_url(base_url, receipt.batch_ids[-1])
    if landed.columns is not None:
        metadata[COLUMN_SCHEMA] = dg.TableSchema(
            columns=[dg.TableColumn(name, kind) for name, kind in landed.columns]
        )
    return metadata


def data_version(landed: Sequence[Landed]) -> dg.DataVersion:
    """Name the data by what it was bought by: landing the same batches again is no new data."""
    bought = [
        [each.receipt.run_key, each.receipt.generation, *each.receipt.batch_ids] for each in landed
    ]
    return dg.DataVersion(hashlib.sha256(json.dumps(bought).encode()).hexdigest()[:20])


def submission_version(statuses: Sequence["RunStatus"]) -> dg.DataVersion:
    """Name a submission by its run and generation: attaching to it again changes nothing."""
    bought = [[each.run_key, each.generation, *each.batch_ids[:1]] for each in statuses]
    return dg.DataVersion(hashlib.sha256(json.dumps(bought).encode()).hexdigest()[:20])


def _batch_url(base_url: str, batch_id: str) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.url(f"{base_url}/v1/batches/{batch_id}")


def _quote_text(quote: "QuoteSummary") -> str:
    budget = "no budget" if quote.budget_usd is None else f"budget ${quote.budget_usd}"
    lines = [
        f"**${quote.total_usd}** at most for {quote.item_count:,} requests ({budget})",
        "",
        "| lane | model | requests | price |",
        "| --- | --- | ---: | ---: |",
        *(
            f"| {lane.provider} | {lane.model} | {lane.items:,} | ${lane.price_usd} |"
            for lane in quote.lanes[:_SHOWN]
        ),
    ]
    return "\n".join([*lines, "", quote.why[:400]] if quote.why else lines)


def _receipt_text(receipt: "Receipt") -> str:
    settled = "not settled yet" if receipt.settled_usd is None else f"${receipt.settled_usd}"
    lines = [
        f"**{settled}** of ${receipt.quoted_usd} quoted",
        "",
        "| rows | |",
        "| --- | ---: |",
        *(f"| {status} | {rows:,} |" for status, rows in receipt.rows.items()),
    ]
    if receipt.unchanged:
        lines.append(f"| unchanged, not bought | {receipt.unchanged:,} |")
    if receipt.error_codes:
        codes = ", ".join(f"{code} {count:,}" for code, count in receipt.error_codes.items())
        lines += ["", f"Errors: {codes}"]
    return "\n".join(lines)


def _lanes_table(receipt: "Receipt") -> dg.MetadataValue[Any]:
    records = [
        dg.TableRecord({
            "lane": lane.provider,
            "model": lane.model,
            "requests": lane.items,
            "completed": lane.completed,
            "failed": lane.failed,
            "settled_usd": str(lane.settled_usd) if lane.settled_usd is not None else "",
        })
        for lane in receipt.lanes[:_SHOWN]
    ]
    schema = dg.TableSchema(
        columns=[
            dg.TableColumn("lane"),
            dg.TableColumn("model"),
            dg.TableColumn("requests", "int"),
            dg.TableColumn("completed", "int"),
            dg.TableColumn("failed", "int"),
            dg.TableColumn("settled_usd", "string"),
        ]
    )
    return dg.MetadataValue.table(records=records, schema=schema)
