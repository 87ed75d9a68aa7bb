"""Progress on stderr: bars for a person at a terminal, a line per finished stage for a log."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchrouter.cli.console import err

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from batchrouter.run.progress import Progress, ProgressListener

_DOING = {
    "build": ("building the manifest", "built the manifest"),
    "quote": ("asking for a price", "locked a price"),
    "upload": ("uploading", "uploaded"),
    "submit": ("submitting", "submitted"),
    "wait": ("waiting for the batch", "the batch has ended"),
    "download": ("downloading", "downloaded"),
    "land": ("writing the table", "wrote the table"),
}
"""What each stage of a run is doing, and what it has done."""

_WIDTH_FOR_DETAILS = 120
"""A batch's id beside the bar needs so many columns; in fewer it would squeeze the bar."""


@contextmanager
def progress_bars() -> "Generator[ProgressListener]":
    """Show a run's progress while the block lasts; nothing of it stays on a terminal's screen."""
    warnings = _warnings_through_console()
    log = logging.getLogger("batchrouter")
    log.addHandler(warnings)
    try:
        if not err().is_terminal:
            yield _Lines().listen
            return
        with _new_bars() as bars:
            yield _Listener(bars).listen
    finally:
        log.removeHandler(warnings)


def _warnings_through_console() -> logging.Handler:
    # A live display redraws itself: what passes by it would tear it apart.
    from rich.logging import RichHandler  # noqa: PLC0415 - `--help` does without

    return RichHandler(
        logging.WARNING, console=err(), show_time=False, show_path=False, show_level=False
    )


def _new_bars() -> "Bars":
    from rich import progress  # noqa: PLC0415 - `--help` does without

    columns: list[progress.ProgressColumn] = [
        progress.SpinnerColumn(finished_text="[green]✓[/]"),
        progress.TextColumn("{task.description:<23}"),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[amount]}"),
        progress.TimeElapsedColumn(),
    ]
    if err().width >= _WIDTH_FOR_DETAILS:
        columns.append(progress.TextColumn("[dim]{task.fields[detail]}"))
    return progress.Progress(*columns, console=err())


class _Listener:
    """Keeps a bar for each stage; stages come in their order, and may come again."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def listen(self, progress: "Progress") -> None:
        if progress.stage not in self._tasks:
            self._finish_all()
            self._tasks[progress.stage] = self._bars.add_task(
                _DOING[progress.stage][0], total=None, amount="", detail=""
            )
        self._bars.update(
            self._tasks[progress.stage],
            completed=progress.done,
            total=progress.total,
            amount=amount(progress),
            detail=progress.detail,
        )

    def _finish_all(self) -> None:
        for stage, task_id in self._tasks.items():
            task = self._bars.tasks[self._bars.task_ids.index(task_id)]
            done = max(task.completed, 1)
            self._bars.update(
                task_id, completed=done, total=done, description=_DOING[stage][1], detail=""
            )


class _Lines:
    """Writes one line when a stage is done: when its total is reached, or the next one begins."""

    def __init__(self) -> None:
        self._last: Progress | None = None
        self._said: set[str] = set()

    def listen(self, progress: "Progress") -> None:
        last = self._last
        if last is not None and last.stage != progress.stage:
            self._say(last)
        self._last = progress
        if progress.total is not None and progress.done >= progress.total:
            self._say(progress)

    def _say(self, progress: "Progress") -> None:
        if progress.stage in self._said:
            return
        self._said.add(progress.stage)
        err().print(f"{_DOING[progress.stage][1]}: {amount(progress)}", markup=False)


def amount(progress: "Progress") -> str:
    """Write how much of a stage is done.

    Example:
        >>> from batchrouter.run.progress import Progress
        >>> amount(Progress("upload", 1_500_000, 3_000_000, "bytes"))
        '1.5 of 3.0 MB'
        >>> amount(Progress("upload", 4_200, 4_200, "bytes"))
        '4.2 kB'
        >>> amount(Progress("build", 10_003, None, "rows"))
        '10,003 rows'
    """
    unit = progress.unit
    done, total = f"{progress.done:,}", f"{progress.total or 0:,}"
    if unit == "bytes":
        most = max(progress.done, progress.total or 0)
        unit, size = ("MB", 1e6) if most >= 1e6 else ("kB", 1e3)  # noqa: PLR2004 - a megabyte
        done, total = f"{progress.done / size:.1f}", f"{(progress.total or 0) / size:.1f}"
    if progress.done == 1 and progress.total in {None, 1}:
        return f"1 {unit.removesuffix('s')}"
    if progress.total is None or progress.total == progress.done:
        return f"{done} {unit}"
    return f"{done} of {total} {unit}"
