"""`runs`, `cancel` and `land`: the runs there are, and what one does with one of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrouter.cli.bars import progress_bars
from batchrouter.cli.console import counted, out, pairs, say_json, table, usd
from batchrouter.cli.failures import code_of
from batchrouter.cli.options import (
    account_options,
    job_argument,
    json_option,
    limit_option,
    load_job,
    load_settings,
    params_option,
    run_key_option,
    runs_url_option,
)
from batchrouter.cli.shown import show_receipt
from batchrouter.errors import ConfigError, JournalError

if TYPE_CHECKING:
    from datetime import timedelta

    from batchrouter.api.settings import Settings
    from batchrouter.run import PrunedRun, RunStatus

_STYLES = {"landed": "green", "failed": "red", "cancelled": "yellow"}


@click.group()
def runs() -> None:
    """The runs below the runs URL, read from their journals; no router is asked."""


@runs.command(name="list")
@click.option("--job", metavar="NAME", help="Only the runs of this job.")
@runs_url_option
@json_option
def list_command(*, job: str | None, runs_url: str | None, as_json: bool) -> None:
    """List the runs, newest first."""
    settings = load_settings(runs_url=runs_url)
    found = sorted(_runs(settings, job), key=_last_touched, reverse=True)
    if as_json:
        say_json([status.to_dict() for status in found])
        return
    if not found:
        out().print(f"There are no runs in {settings.runs_url!r} yet.")
        return
    shown = table("job", "run key", "stage", "rows", "committed", "last event", right=("rows",))
    for status in found:
        shown.add_row(
            status.job,
            status.run_key,
            _stage(status) + (" [dim]pruned[/]" if status.removed else ""),
            "" if status.row_count is None else f"{status.row_count:,}",
            usd(status.committed_usd),
            f"{status.updated_at:%Y-%m-%d %H:%M:%SZ}" if status.updated_at else "",
        )
    out().print(shown)


def _duration(ctx: click.Context, param: click.Parameter, given: str | None) -> "timedelta | None":
    from batchrouter.job.retain import parse_duration  # noqa: PLC0415 - loads pydantic

    try:
        return None if given is None else parse_duration(given)
    except ValueError as error:
        raise click.BadParameter(f"{given!r} {error}", ctx, param) from None


@runs.command()
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_duration,
    help="Also the files, journals aside, of all runs that ended so long ago: 12h, 30d, 8w.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go; nothing is removed.")
@click.option("--job", metavar="NAME", help="Only the runs of this job.")
@runs_url_option
@json_option
def prune(
    *,
    older_than: "timedelta | None",
    dry_run: bool,
    job: str | None,
    runs_url: str | None,
    as_json: bool,
) -> None:
    """Remove the files that runs no longer need, as their jobs' `retain` says, or by age.

    A run with anything open is left as it is. Journals stay until `retain.journal` ends.
    """
    from batchrouter.run import prune_runs  # noqa: PLC0415 - loads pydantic

    settings = load_settings(runs_url=runs_url)
    done: list[PrunedRun] = []
    for each in prune_runs(
        settings.runs_url,
        older_than=older_than,
        job=job,
        dry_run=dry_run,
        storage_options=settings.storage_options,
    ):
        done.append(each)
        if not as_json:
            out().print(_told_of(each, dry_run=dry_run), markup=False, soft_wrap=True)
    if as_json:
        say_json({"dry_run": dry_run, "runs": [each.to_dict() for each in done]})
    else:
        _sum_up(done, settings, dry_run=dry_run)
    if any(each.has_failed for each in done):
        click.get_current_context().exit(code_of(JournalError()))


def _told_of(pruned: "PrunedRun", *, dry_run: bool) -> str:
    name = f"{pruned.job} · {pruned.run_key}" if pruned.job else pruned.folder
    if pruned.left is not None:
        return f"left     {name}: {pruned.left}"
    what = ", ".join(pruned.removed) if "journal" not in pruned.removed else "the whole folder"
    size = f"{counted(pruned.file_count, 'file')}, {pruned.size_bytes / 1e6:,.1f} MB"
    return f"{'would go' if dry_run else 'removed '} {name}: {what} ({size})"


def _sum_up(done: "list[PrunedRun]", settings: "Settings", *, dry_run: bool) -> None:
    if not done:
        out().print(f"There are no runs in {settings.runs_url!r}.")
        return
    pruned = [each for each in done if each.left is None]
    size = sum(each.size_bytes for each in pruned) / 1e6
    said = "Would prune" if dry_run else "Pruned"
    out().print(f"{said} {len(pruned):,} of {counted(len(done), 'run')}: {size:,.1f} MB.")


@runs.command()
@click.argument("run_key", metavar="KEY")
@click.option("--job", metavar="NAME", help="The job's name, where several have such a run.")
@runs_url_option
@json_option
def show(*, run_key: str, job: str | None, runs_url: str | None, as_json: bool) -> None:
    """Show one run: how far it is, what it bought, and its history."""
    settings = load_settings(runs_url=runs_url)
    status = _the_run(settings, run_key, job)
    history = list(_history(settings, status.folder))
    if as_json:
        say_json({**status.to_dict(), "history": history})
        return
    items = "not built yet" if status.item_count is None else counted(status.item_count, "item")
    rows = "" if status.row_count is None else f" of {counted(status.row_count, 'row')}"
    out().print(f"[bold]{status.job}[/] · {status.run_key}: {_stage(status)}")
    out().print(
        pairs([
            ("requests", items + rows),
            ("committed", usd(status.committed_usd)),
            ("batches", "\n".join(status.batch_ids) or "none bought"),
            ("folder", f"{settings.runs_url.rstrip('/')}/{status.folder}"),
            *([("removed", ", ".join(status.removed))] if status.removed else []),
        ])
    )
    for event in history:
        fact = event.get("fact", {})
        about = fact.get("batch_id") or fact.get("reason") or fact.get("file_id") or ""
        if fact.get("type") == "removed":
            about = f"{', '.join(fact['parts'])} ({about})"
        out().print(f"  [dim]{event['at'][:19]}Z[/]  {fact.get('type', ''):<12} [dim]{about}[/]")


@click.command()
@job_argument
@run_key_option
@params_option
@limit_option
@account_options
@json_option
def cancel(
    *,
    job_file: Path,
    run_key: str,
    params: tuple[tuple[str, str], ...],
    limit: int | None,
    base_url: str | None,
    runs_url: str | None,
    as_json: bool,
) -> None:
    """Stop a run: nothing more is bought, and what is open is asked to cancel.

    Items that a provider already has may still complete and be billed; `batchrouter run` or
    `land` with the same key collects and lands them.
    """
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    settings = load_settings(base_url=base_url, runs_url=runs_url)
    _must_exist(settings, load_job(job_file, params).name, run_key, limit)
    job = load_job(job_file, params)
    with Run.open(job, run_key=run_key, settings=settings, limit=limit) as opened:
        cancelled = opened.cancel("cancelled from the command line")
        status = opened.status()
    if as_json:
        say_json({"cancelled": cancelled, **status.to_dict()})
    elif not cancelled:
        out().print(f"There is nothing to cancel: run {run_key!r} is {status.stage}.")
    elif status.batch_ids:
        out().print(
            f"Run {run_key!r} is being cancelled. What finished all the same is landed by\n"
            f"  batchrouter land {job_file} --run-key {run_key}"
        )
    else:
        out().print(f"Run {run_key!r} is cancelled. Nothing had been bought.")


@click.command()
@job_argument
@run_key_option
@params_option
@limit_option
@click.option("--again", is_flag=True, help="Write the table anew, though it was landed.")
@account_options
@json_option
def land(
    *,
    job_file: Path,
    run_key: str,
    params: tuple[tuple[str, str], ...],
    limit: int | None,
    base_url: str | None,
    runs_url: str | None,
    again: bool,
    as_json: bool,
) -> None:
    """Write the table of a run whose batches have ended; buys nothing.

    The results come from the run folder once they were collected: `--again` needs no router.
    """
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    job = load_job(job_file, params)
    settings = load_settings(base_url=base_url, runs_url=runs_url)
    _must_exist(settings, job.name, run_key, limit)
    with (
        progress_bars() as listener,
        Run.open(
            job, run_key=run_key, settings=settings, limit=limit, on_progress=listener
        ) as opened,
    ):
        if opened.status().stage in {"opened", "built"}:
            raise ConfigError(
                f"run {run_key!r} has bought nothing yet, so there is nothing to land: "
                f"batchrouter run {job_file} --run-key {run_key}"
            )
        receipt = opened.land(again=again)
    if as_json:
        say_json(receipt.to_dict())
    else:
        show_receipt(receipt)


def _runs(settings: "Settings", job: str | None) -> "Iterator[RunStatus]":
    from batchrouter.run import list_runs  # noqa: PLC0415 - loads pydantic

    return list_runs(settings.runs_url, job=job, storage_options=settings.storage_options)


def _last_touched(status: "RunStatus") -> float:
    return status.updated_at.timestamp() if status.updated_at else 0.0


def _the_run(settings: "Settings", run_key: str, job: str | None) -> "RunStatus":
    found = [each for each in _runs(settings, job) if run_key in {each.run_key, each.folder}]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"there is no run {run_key!r} in {settings.runs_url!r}; "
            "`batchrouter runs list` has those there are"
        )
    jobs = ", ".join(sorted(each.job for each in found))
    raise ConfigError(f"several jobs have a run {run_key!r} ({jobs}): say which by --job NAME")


def _must_exist(settings: "Settings", job: str, run_key: str, limit: int | None) -> None:
    # Opening a run creates it; a mistyped key must not.
    key = run_key if limit is None else f"{run_key}~limit-{limit}"
    _the_run(settings, key, job)


def _history(settings: "Settings", folder: str) -> Iterator[dict[str, Any]]:
    from batchrouter.run.folder import RunFolder  # noqa: PLC0415 - loads fsspec

    below = RunFolder.below(settings.runs_url, folder, dict(settings.storage_options))
    for name in sorted(below.names("journal")):
        if name.endswith(".json"):
            yield json.loads(below.read(below.path("journal", name)))


def _stage(status: "RunStatus") -> str:
    style = _STYLES.get(status.stage)
    return f"[{style}]{status.stage}[/]" if style else status.stage
