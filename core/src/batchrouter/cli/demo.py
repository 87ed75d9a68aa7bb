"""`demo`: the whole story, on a bundled table, against a router of its own.

Nothing is acted: the job file is run as `batchrouter run` would run it. All of it stays in one
folder, for the reader to go on from.
"""

import os
import shlex
import sys
from contextlib import chdir
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrouter.cli.bars import progress_bars
from batchrouter.cli.console import counted, out, table, usd
from batchrouter.cli.shown import show_quote, show_receipt
from batchrouter.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings
    from batchrouter.job import Job
    from batchrouter.run import Receipt

_FILES = ("tickets.jsonl", "job.yaml", "workflow.yaml")
_SHOWN_ROWS = 8
_OTHER_COLUMNS_WIDTH = 66

_READ_WITH_DUCKDB = (
    "python -c 'import duckdb; duckdb.sql("
    '''"""select intent, count(*), sum(_cost_usd) '''
    '''from "labelled/*/*.parquet" group by all""").show()\''''
)


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("batchrouter-demo"),
    show_default=True,
    help="Where the files go, and stay. A job.yaml that is there already is used as it stands.",
)
def demo(*, folder: Path) -> None:
    """Run the whole story: a table of 72 support tickets in, a labelled table out.

    It needs no account and no network: an embedded router with simulated lanes is started for
    it, at the prices of real ones. Nothing is charged to anybody.
    """
    _need_extras()
    _lay_out(folder)
    from batchrouter.testing import running_router  # noqa: PLC0415 - `--help` does without

    with chdir(folder):
        job = _show_job(Path("job.yaml"))
        out().print("\n[dim]Starting an embedded router with simulated lanes …[/]")
        with running_router("router") as router:
            settings = router.settings(runs_url="runs", poll_interval_s=0.2)
            run_key = _next_run_key(settings, job)
            receipt = _run(job, settings, run_key)
            _show_rows(receipt)
            _show_paid_once(job, settings, run_key)
    _show_what_next(folder)


def _need_extras() -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - `--help` does without

    if any(find_spec(name) is None for name in ("pyarrow", "msgspec", "fastapi", "dbos")):
        raise MissingExtraError.for_extra("all", needed_for="the demo")


def _lay_out(folder: Path) -> None:
    bundled = resources.files("batchrouter.cli").joinpath("demo_data")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if not (folder / name).exists():
                (folder / name).write_bytes(bundled.joinpath(name).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"the demo cannot write to {folder}: {error.strerror}; choose another with --dir"
        ) from error


def _show_job(path: Path) -> "Job":
    from rich.syntax import Syntax  # noqa: PLC0415 - `--help` does without

    from batchrouter.job import Job  # noqa: PLC0415 - loads pydantic

    out().rule("[bold]1. A job[/]: one table, one prompt, one budget", align="left")
    out().print(Syntax(path.read_text("utf-8").rstrip(), "yaml", background_color="default"))
    return Job.from_file(path)


def _next_run_key(settings: "Settings", job: "Job") -> str:
    from batchrouter.run import list_runs  # noqa: PLC0415 - loads pydantic

    taken = {status.run_key for status in list_runs(settings.runs_url, job=job.name)}
    number = 1
    while f"demo-{number}" in taken:
        number += 1
    return f"demo-{number}"


def _run(job: "Job", settings: "Settings", run_key: str) -> "Receipt":
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    out().rule("[bold]2. A locked price[/], before anything is sent", align="left")
    with progress_bars() as listener:
        run = Run.open(job, run_key=run_key, settings=settings, on_progress=listener)
        quote = run.quote()
    show_quote(quote)
    out().rule("[bold]3. Bought, waited for, landed[/]", align="left")
    with progress_bars() as listener:
        run = Run.open(job, run_key=run_key, settings=settings, on_progress=listener)
        receipt = run.execute()
    show_receipt(receipt)
    return receipt


def _show_rows(receipt: "Receipt") -> None:
    out().rule("[bold]4. The table[/]: every row, with its columns and its cost", align="left")
    width = max(12, out().width - _OTHER_COLUMNS_WIDTH)
    shown = table("ticket_id", "subject", "intent", "urgent", "_status", "_cost_usd")
    for row in _first_rows(receipt):
        subject = str(row["subject"])
        shown.add_row(
            str(row["ticket_id"]),
            subject if len(subject) <= width else subject[: width - 1] + "…",
            str(row.get("intent")),
            str(row.get("urgent")).lower(),
            row["_status"],
            f"{row['_cost_usd']:.8f}",
        )
    out().print(shown)
    out().print(
        f"[dim]… {counted(receipt.row_count, 'row')} in all. The lanes are simulated: they guess "
        "by the words they find.[/]"
    )


def _first_rows(receipt: "Receipt") -> list[dict[str, Any]]:
    from pyarrow import parquet  # noqa: PLC0415 - `--help` does without

    with parquet.ParquetFile(receipt.location) as file:
        batch = next(file.iter_batches(batch_size=_SHOWN_ROWS), None)
        return batch.to_pylist() if batch is not None else []


def _show_paid_once(job: "Job", settings: "Settings", run_key: str) -> None:
    from batchrouter.run import Run  # noqa: PLC0415 - loads pydantic

    out().rule("[bold]5. Paid once[/]", align="left")
    again = Run.open(job, run_key=run_key, settings=settings).execute()
    out().print(
        f"The same run key once more: {counted(again.batch_count, 'batch')} in all, still "
        f"{usd(again.settled_usd)}. Nothing was bought again."
    )


def _show_what_next(folder: Path) -> None:
    out().rule("[bold]What to try next[/]", align="left")
    enter = f"cd {shlex.quote(os.fspath(folder))}"
    bin_dir = os.fspath(Path(sys.executable).parent)
    if bin_dir not in os.environ.get("PATH", "").split(os.pathsep):
        enter += f"; export PATH={shlex.quote(bin_dir)}:$PATH"
    steps = f"""\
[dim]# In one terminal: the same router, now to stay. Ctrl-C ends it.[/]
{enter}
batchrouter serve --data router

[dim]# In another one:[/]
{enter}
export BATCHROUTER_BASE_URL=http://127.0.0.1:8765 BATCHROUTER_API_KEY=$(cat router/api_key)
batchrouter doctor                              [dim]# is all well?[/]
batchrouter run job.yaml --run-key monday       [dim]# edit job.yaml first, if you like[/]
batchrouter run workflow.yaml --run-key monday  [dim]# buy the outcome, not a model[/]
batchrouter runs list"""
    out().print(steps, soft_wrap=True)
    out().print(_READ_WITH_DUCKDB, soft_wrap=True, markup=False)
