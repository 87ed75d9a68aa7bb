"""`check`, `quote` and `run`: what one does with a job file."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from batchrouter.cli.bars import progress_bars
from batchrouter.cli.console import out, say_json
from batchrouter.cli.failures import CUT_SHORT
from batchrouter.cli.options import (
    account_options,
    base_url_option,
    job_argument,
    json_option,
    limit_option,
    load_job,
    load_settings,
    need_key,
    params_option,
    run_key_option,
)
from batchrouter.cli.shown import quote_as_json, show_quote, show_receipt
from batchrouter.errors import SourceError

if TYPE_CHECKING:
    from batchrouter.run import QuoteSummary, Receipt

_SHOWN_LINE_CHARACTERS = 600


@click.command()
@job_argument
@params_option
@json_option
def check(*, job_file: Path, params: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Hold a job file against its source: its fields, the columns, their types, the first rows.

    Nothing is written and nothing is sent.
    """
    from batchrouter.errors import MissingExtraError  # noqa: PLC0415 - rarely needed

    job = load_job(job_file, params)
    try:
        from batchrouter.manifest.check import check_job, preview  # noqa: PLC0415 - pyarrow
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("tables", needed_for="reading a table") from error
    options = load_settings().storage_options
    problems = check_job(job, options)
    if problems:
        raise SourceError(f"{job_file} does not fit its source:\n  " + "\n  ".join(problems))
    lines = preview(job, 1, options)
    if as_json:
        say_json({"job": job.name, "problems": [], "first_line": lines[0] if lines else None})
        return
    out().print(f"[green]ok[/]  {job.name}: the job and its source fit each other")
    if lines:
        out().print("[dim]The first line of the manifest:[/]")
        shown = lines[0][:_SHOWN_LINE_CHARACTERS]
        out().print(shown + ("…" if shown != lines[0] else ""), markup=False, soft_wrap=True)
    else:
        out().print("[yellow]The source has no rows, or all that were looked at are skipped.[/]")


@click.command()
@job_argument
@params_option
@limit_option
@base_url_option
@json_option
def quote(
    *,
    job_file: Path,
    params: tuple[tuple[str, str], ...],
    limit: int | None,
    base_url: str | None,
    as_json: bool,
) -> None:
    """Lock a price for a job and say which lanes would do it, and why. Buys nothing.

    The manifest is built in a temporary folder and not sent; `run` asks for a price of its own.
    """
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    job = load_job(job_file, params)
    with tempfile.TemporaryDirectory(prefix="batchrouter-quote-") as folder:
        settings = load_settings(base_url=base_url, runs_url=folder)
        need_key(settings)
        with (
            progress_bars() as listener,
            Run.open(
                job, run_key="quote", settings=settings, limit=limit, on_progress=listener
            ) as opened,
        ):
            summary = opened.quote()
    if as_json:
        say_json(quote_as_json(summary))
    else:
        show_quote(summary)


@click.command()
@job_argument
@run_key_option
@params_option
@limit_option
@click.option("--dry-run", is_flag=True, help="Build and quote, and stop: nothing is bought.")
@click.option(
    "--wait",
    type=click.Choice(["both", "webhook", "poll"]),
    default="both",
    show_default=True,
    help="How to learn that a batch has ended. webhook: only by the inbox, never by asking.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop waiting after so long; the run goes on, and the same command waits on.",
)
@click.option(
    "--rebuy",
    is_flag=True,
    help="Buy the rest of what was cut short under this run key, or all anew if nothing was, or "
    "if the job has changed.",
)
@account_options
@json_option
def run(
    *,
    job_file: Path,
    run_key: str,
    params: tuple[tuple[str, str], ...],
    limit: int | None,
    wait: Literal["both", "webhook", "poll"],
    timeout_s: float | None,
    base_url: str | None,
    runs_url: str | None,
    dry_run: bool,
    rebuy: bool,
    as_json: bool,
) -> None:
    """Run a job to its table, or go on with it: build, quote, buy, wait, land.

    Give the same command again after any interruption: what was bought is not bought again.
    """
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    job = load_job(job_file, params)
    settings = load_settings(base_url=base_url, runs_url=runs_url)
    need_key(settings)
    with (
        progress_bars() as listener,
        Run.open(
            job,
            run_key=run_key,
            settings=settings,
            on_rerun="rebuy" if rebuy else "resume",
            limit=limit,
            on_progress=listener,
        ) as opened,
    ):
        summary = opened.quote() if dry_run else None
        receipt = None if dry_run else opened.execute(wait=wait, timeout_s=timeout_s)
    if summary is not None:
        _show_dry_run(summary, opened.folder_url, as_json=as_json)
    if receipt is not None:
        _show_end(receipt, as_json=as_json)


def _show_end(receipt: "Receipt", *, as_json: bool) -> None:
    if as_json:
        say_json(receipt.to_dict())
    else:
        show_receipt(receipt)
    if receipt.outcome != "landed":
        click.get_current_context().exit(CUT_SHORT)


def _show_dry_run(summary: "QuoteSummary", folder_url: str, *, as_json: bool) -> None:
    if as_json:
        say_json({"dry_run": True, "quote": quote_as_json(summary), "run": folder_url})
        return
    show_quote(summary)
    out().print(f"Nothing was bought. The manifest is in {folder_url}", soft_wrap=True)
