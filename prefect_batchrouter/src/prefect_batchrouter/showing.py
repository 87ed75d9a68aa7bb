"""What people see of a run in Prefect: artifacts, events, and the table as an asset.

All of it is a courtesy: a run never fails because something could not be shown.
"""

import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event
from prefect.logging import get_logger

from prefect_batchrouter.blocking import blocking
from prefect_batchrouter.failures import failed_rows
from prefect_batchrouter.planning import Plan, outermost_flow_run_id

if TYPE_CHECKING:
    from batchrouter.run import Progress

_log = get_logger("prefect_batchrouter")
_NOT_IN_KEY = re.compile(r"[^a-z0-9]+")
_NOT_IN_ASSET = re.compile(r"[\s#?&%\"'<>\[\]{}|\\^`]")
_MOST_ASSET_CHARS = 512
_PATHS = {"parquet": "file", "delta": "file", "iceberg": "file", "duckdb": "duckdb"}
"""Kinds of sinks whose table is named by where it is, and the scheme of its asset."""
_UPDATE_EVERY_S = 5.0
_PERCENT = 100.0


def _key(kind: str, job_name: str) -> str:
    return f"batchrouter-{kind}-{_NOT_IN_KEY.sub('-', job_name.lower()).strip('-')}"


@contextmanager
def _courtesy(what: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the run matters more
        _log.warning("could not show %s: %s", what, error)
        _log.debug("could not show %s", what, exc_info=True)


def show_quote(quoted: Mapping[str, Any]) -> None:
    """Show a price and its lanes as a table; nothing when there is nothing left to buy."""
    if not quoted["item_count"]:
        return
    rows: list[dict[str, Any]] = [
        {
            "provider": lane["provider"],
            "model": lane["model"],
            "items": lane["items"],
            "price (USD)": lane["price_usd"],
        }
        for lane in quoted["lanes"]
    ]
    rows.append({
        "provider": "total",
        "model": "",
        "items": quoted["item_count"],
        "price (USD)": quoted["total_usd"],
    })
    budget = quoted["budget_usd"] or "none"
    fits = "inside" if quoted["fits"] else "**above**"
    with _courtesy("the quote"):
        blocking(create_table_artifact)(
            rows,
            key=_key("quote", quoted["job"]),
            description=(
                f"The locked price of {quoted['item_count']:,} requests: {quoted['total_usd']} USD,"
                f" {fits} the budget of {budget}. Already committed: {quoted['committed_usd']} USD."
            ),
        )


def show_batches(plan: Plan, batch_ids: list[str]) -> None:
    """Link to the newest batch at the API."""
    if not batch_ids:
        return
    with _courtesy("the link to the batch"):
        blocking(create_link_artifact)(
            link=f"{plan.settings.base_url}/v1/batches/{quote(batch_ids[-1], safe='')}",
            link_text=batch_ids[-1],
            key=_key("batch", plan.job.name),
            description=f"Batches of run {plan.run_key}: {', '.join(batch_ids)}",
        )


def show_receipt(plan: Plan, receipt: Mapping[str, Any]) -> None:
    """Show what was bought and landed, and the first rows that have no answer."""
    with _courtesy("the receipt"):
        blocking(create_markdown_artifact)(
            receipt_markdown(receipt),
            key=_key("receipt", receipt["job"]),
            description=f"Run {receipt['run_key']} of job {receipt['job']}",
        )
    if all(not count for status, count in receipt["rows"].items() if status != "succeeded"):
        return
    with _courtesy("the failed rows"):
        rows, told = failed_rows(plan, receipt)
        if rows:
            blocking(create_table_artifact)(
                rows,
                key=_key("failed-rows", receipt["job"]),
                description=told,
            )


def receipt_markdown(receipt: Mapping[str, Any]) -> str:
    """Write a receipt as a page.

    Example:
        >>> page = receipt_markdown({"job": "j", "run_key": "k", "outcome": "landed",
        ...     "rows": {"succeeded": 3, "failed": 0}, "row_count": 3, "quoted_usd": "0.02",
        ...     "settled_usd": "0.01", "budget_usd": None, "lanes": [], "location": "out",
        ...     "duration_s": 61.5, "error_codes": {}, "batch_ids": ["b"], "batch_count": 1})
        >>> page.splitlines()[0]
        '## j: landed'
    """
    rows = [f"| {status} | {count:,} |" for status, count in receipt["rows"].items() if count]
    lanes = [
        f"| {lane['provider']} | {lane['model']} | {lane['items']:,} | {lane['failed']:,} | "
        f"{lane['settled_usd'] or 'not told'} |"
        for lane in receipt["lanes"]
    ]
    batches = ", ".join(f"`{each}`" for each in receipt["batch_ids"]) or "none"
    errors = [f"- `{code}`: {count:,}" for code, count in receipt["error_codes"].items()]
    return "\n".join([
        f"## {receipt['job']}: {receipt['outcome']}",
        "",
        f"Run key `{receipt['run_key']}`, {receipt['duration_s']:,.0f} s. Batches: {batches}.",
        "",
        f"Table: `{receipt['location']}`",
        "",
        "| money | USD |",
        "| --- | ---: |",
        f"| budget | {receipt['budget_usd'] or 'none'} |",
        f"| quoted | {receipt['quoted_usd']} |",
        f"| settled | {receipt['settled_usd'] or 'not told yet'} |",
        "",
        "| rows | count |",
        "| --- | ---: |",
        *rows,
        f"| **all** | {receipt['row_count']:,} |",
        *(["", "| lane | model | items | failed | settled (USD) |"] if lanes else []),
        *(["| --- | --- | ---: | ---: | ---: |", *lanes] if lanes else []),
        *(["", "Errors:", "", *errors] if errors else []),
    ])


class ProgressBar:
    """A progress artifact of one wait, updated at most every few seconds.

    Call it with the core's progress; values of other stages pass by.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._clock = clock
        self._artifact_id: UUID | None = None
        self._shown: float | None = None
        self._shown_at = 0.0

    def __call__(self, progress: "Progress") -> None:
        """Take progress of a wait."""
        if progress.stage == "wait" and progress.total:
            self.show(_PERCENT * progress.done / progress.total)

    def show(self, percent: float) -> None:
        """Show a share of 100, unless it is the one shown already or comes too soon."""
        now = self._clock()
        is_soon = self._shown is not None and now - self._shown_at < _UPDATE_EVERY_S
        if percent == self._shown or (is_soon and percent < _PERCENT):
            return
        self._shown, self._shown_at = percent, now
        with _courtesy("the progress"):
            if self._artifact_id is None:
                self._artifact_id = blocking(create_progress_artifact)(
                    progress=percent,
                    key=_key("progress", self._plan.job.name),
                    description=f"Items of run {self._plan.run_key} that have an answer",
                )
            else:
                blocking(update_progress_artifact)(
                    artifact_id=self._artifact_id,
                    progress=percent,
                )


def asset_key(sink: str) -> str | None:
    """Name a job's table as an asset, None where Prefect's keys cannot hold the name.

    Credentials, ports and queries are no part of the name; a local path is made absolute.

    Example:
        >>> asset_key("s3://lake/labelled"), asset_key("parquet:/lake/labelled")
        ('s3://lake/labelled', 'file:///lake/labelled')
        >>> asset_key("duckdb:/lake/all.duckdb#labelled"), asset_key("/my lake")
        ('duckdb:///lake/all.duckdb/labelled', None)
        >>> asset_key("postgresql://ann:secret@db:5432/lake#labelled")
        'postgresql://db/lake/labelled'
        >>> asset_key("postgresql:warehouse#public.labelled")
        'postgresql://warehouse/public.labelled'
    """
    kind, colon, rest = sink.partition(":")
    is_prefixed = bool(colon) and not rest.startswith("//") and kind.isalnum()
    address, _, table = (rest if is_prefixed else sink).partition("#")
    if "://" in address:
        parts = urlsplit(address)
        key = f"{parts.scheme.lower()}://{parts.hostname or ''}{parts.path}"
    elif is_prefixed and kind not in _PATHS:
        key = f"{kind}://{address}"  # the name of a connection
    else:
        scheme = _PATHS.get(kind, "file") if is_prefixed else "file"
        key = f"{scheme}://{Path(address).expanduser().resolve()}"
    key = f"{key.rstrip('/')}/{table}" if table else key
    return None if _NOT_IN_ASSET.search(key) or len(key) > _MOST_ASSET_CHARS else key


def emit_batch_event(
    what: str,
    batch_id: str,
    *,
    flow_run_ids: list[str] | None = None,
    payload: Mapping[str, Any] | None = None,
    event_id: UUID | None = None,
) -> None:
    """Emit `batchrouter.batch.<what>`, with the flow runs that it is about.

    An automation can trigger on it, and act on the related flow run.
    """
    found = outermost_flow_run_id()
    ids = flow_run_ids if flow_run_ids is not None else [found] if found else []
    with _courtesy("an event"):
        emit_event(
            f"batchrouter.batch.{what}",
            resource={
                "prefect.resource.id": f"batchrouter.batch.{batch_id}",
                "prefect.resource.name": batch_id,
            },
            related=[
                {
                    "prefect.resource.id": f"prefect.flow-run.{each}",
                    "prefect.resource.role": "flow-run",
                }
                for each in ids
            ],
            payload=dict(payload or {}),
            id=event_id,
        )
