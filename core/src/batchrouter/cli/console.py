"""How the commands speak: results on stdout, everything on the way on stderr, JSON when asked."""

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from batchrouter.money import format_usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDTH_WITHOUT_TERMINAL = 110


@cache
def out() -> "Console":
    """The console for results (stdout)."""
    return _console(stderr=False)


@cache
def err() -> "Console":
    """The console for progress and remarks (stderr)."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console  # noqa: PLC0415 - `--help` does without

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        # A pipe or a CI log has no width of its own; 80 columns would break ids and paths.
        console = Console(stderr=stderr, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    return console


def say_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(*headings: str, right: Sequence[str] = ()) -> "Table":
    """Make a table without lines: headings, and numbers to the right."""
    from rich.table import Table  # noqa: PLC0415 - `--help` does without

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left")
    return made


def pairs(rows: Iterable[tuple[str, Any]]) -> "Table":
    """Make a two-column list: a dim name, and what it is."""
    from rich.table import Table  # noqa: PLC0415 - `--help` does without

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(f"  {name}", value if hasattr(value, "__rich_console__") else str(value))
    return grid


def usd(amount: Decimal | None) -> str:
    """Write an amount for a person: exact, and with at least the cents.

    Example:
        >>> usd(Decimal("25")), usd(Decimal("0.000412")), usd(None)
        ('$25.00', '$0.000412', 'not known yet')
    """
    return "not known yet" if amount is None else f"${format_usd(amount)}"


def seconds(duration_s: float) -> str:
    """Write a duration for a person.

    Example:
        >>> seconds(0.62), seconds(75), seconds(3 * 3600 + 120)
        ('0.6 s', '1 min 15 s', '3 h 2 min')
    """
    if duration_s < 60:  # noqa: PLR2004 - a minute
        return f"{duration_s:.1f} s"
    minutes, rest_s = divmod(round(duration_s), 60)
    if minutes < 60:  # noqa: PLR2004 - an hour
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> counted(1, "row"), counted(10003, "row"), counted(2, "batch")
        ('1 row', '10,003 rows', '2 batches')
    """
    if number == 1:
        return f"1 {noun}"
    plural = "es" if noun.endswith(("ch", "s", "x")) else "s"
    return f"{number:,} {noun}{plural}"
