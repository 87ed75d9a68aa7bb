"""`doctor`: goes through a set-up from the ground up and says what is wrong with it."""

from typing import TYPE_CHECKING, Final

import click

from batchrouter.cli.console import out, say_json
from batchrouter.cli.diagnosis import examine
from batchrouter.cli.finding import Finding
from batchrouter.cli.options import account_options, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKS: Final = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@click.command()
@account_options
@json_option
def doctor(*, base_url: str | None, runs_url: str | None, as_json: bool) -> None:
    """Say what is wrong with a set-up, and what to do.

    Looks at Python, the libraries, the settings, the router, the key and its scopes, the clock,
    the runs folder, the inbox and the webhook receiver. Buys nothing; what it writes into the
    runs folder, it removes. With webhooks, one `doctor.ping` stays in the inbox for a week;
    no wait heeds it.
    """
    found: list[Finding] = []
    for finding in examine(base_url=base_url, runs_url=runs_url):
        found.append(finding)
        if not as_json:
            _show(finding)
    failed = [finding for finding in found if finding.level == "fail"]
    if as_json:
        say_json({"ok": not failed, "findings": [finding.to_dict() for finding in found]})
    else:
        _sum_up(found)
    if failed:
        click.get_current_context().exit(failed[0].exit_code)


def _show(finding: Finding) -> None:
    from rich.markup import escape  # noqa: PLC0415 - `--help` does without

    out().print(
        f"{_MARKS[finding.level]}  {escape(f'{finding.subject:<12}')} {escape(finding.told)}",
        soft_wrap=True,
    )
    for line in _advice_lines(finding):
        out().print(f"{'':<6}{'':<12} [dim]→ {escape(line)}[/]", soft_wrap=True)


def _advice_lines(finding: Finding) -> "Iterator[str]":
    if finding.advice:
        yield from finding.advice.splitlines()


def _sum_up(found: list[Finding]) -> None:
    levels = [finding.level for finding in found]
    failed, warned = levels.count("fail"), levels.count("warn")
    if failed:
        out().print(f"\n[bold red]{failed} to mend[/], {warned} to look at.")
    elif warned:
        out().print(f"\n[bold]Works[/], with {warned} to look at.")
    else:
        out().print("\n[bold green]All is well.[/]")
