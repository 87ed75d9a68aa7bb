"""`batches`: what the router knows, whoever bought it."""

from typing import TYPE_CHECKING, Any

import click

from batchrouter.cli.console import out, pairs, say_json, table, usd
from batchrouter.cli.options import base_url_option, json_option, load_settings

if TYPE_CHECKING:
    from batchrouter.api.client import Client
    from batchrouter.api.models import Batch


@click.group()
def batches() -> None:
    """The batches of your account at the router."""


@batches.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--state", multiple=True, help="Only batches in this state; may be given again.")
@base_url_option
@json_option
def list_command(
    *, limit: int, state: tuple[str, ...], base_url: str | None, as_json: bool
) -> None:
    """List batches, newest first."""
    with _client(base_url) as client:
        page = client.list_batches(limit=limit, state=state)
    if as_json:
        say_json(page.model_dump(mode="json"))
        return
    if not page.data:
        out().print("There are no batches.")
        return
    shown = table("batch", "state", "done", "of", "quoted", "created", right=("done", "of"))
    for batch in page.data:
        shown.add_row(
            batch.id,
            batch.state,
            f"{batch.counts.completed + batch.counts.failed:,}" if batch.counts else "",
            f"{batch.counts.total:,}" if batch.counts else "",
            usd(batch.quoted_total.amount) if batch.quoted_total else "",
            f"{batch.created_at:%Y-%m-%d %H:%M:%SZ}" if batch.created_at else "",
        )
    out().print(shown)
    if page.has_more:
        out().print("[dim]There are more: --limit N shows up to 1000.[/]")


@batches.command()
@click.argument("batch_id", metavar="ID")
@base_url_option
@json_option
def show(*, batch_id: str, base_url: str | None, as_json: bool) -> None:
    """Show one batch: its state, its lanes and why, and what it costs."""
    with _client(base_url) as client:
        batch = client.retrieve_batch(batch_id, include_billing_receipt=True)
    if as_json:
        say_json(batch.model_dump(mode="json"))
        return
    _show(batch)


@batches.command()
@click.argument("batch_id", metavar="ID")
@base_url_option
@json_option
def cancel(*, batch_id: str, base_url: str | None, as_json: bool) -> None:
    """Ask the router to cancel a batch. For a run, use `batchrouter cancel JOB` instead.

    Items that a provider already has may still complete and be billed.
    """
    with _client(base_url) as client:
        batch = client.cancel_batch(batch_id)
    if as_json:
        say_json(batch.model_dump(mode="json"))
        return
    out().print(f"{batch.id} is {batch.state}.")


def _client(base_url: str | None) -> "Client":
    from batchrouter.api.client import Client  # noqa: PLC0415 - loads httpx

    return Client(load_settings(base_url=base_url))


def _show(batch: "Batch") -> None:
    out().print(f"[bold]{batch.id}[/]: {batch.state}")
    rows: list[tuple[str, Any]] = []
    counts = batch.counts
    if counts:
        told = (
            f"{counts.total:,} = {counts.completed:,} completed + {counts.failed:,} failed + "
            f"{counts.cancelled:,} cancelled + {counts.pending + counts.running:,} to do"
        )
        rows.append(("items", told))
    if batch.quoted_total:
        rows.append(("quoted", usd(batch.quoted_total.amount)))
    rows.append(("settled", usd(batch.settled_total.amount if batch.settled_total else None)))
    if batch.lanes:
        lanes = table("lane", "model", "state", "items", "completed", "failed")
        for lane in batch.lanes:
            lanes.add_row(
                lane.provider,
                lane.model,
                lane.state,
                f"{lane.item_count:,}",
                f"{lane.completed:,}",
                f"{lane.failed:,}",
            )
        rows.append(("lanes", lanes))
    if batch.routing_explanation and batch.routing_explanation.summary:
        rows.append(("why", batch.routing_explanation.summary))
    if batch.error:
        rows.append(("error", str(batch.error)))
    if batch.metadata:
        rows.append(("metadata", ", ".join(f"{k}={v}" for k, v in batch.metadata.items())))
    out().print(pairs(rows))
