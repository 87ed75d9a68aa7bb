"""The stories that pass every kill point of a run, told in a process of their own.

    python story.py STORY < scene.json

A story may be told again from its first line after a death at any point: it goes on from what
the run folder says, and comes to the same end. Its last line is the end, as JSON.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

from batchrouter import Job, Receipt, Run, Settings
from batchrouter.errors import BudgetExceededError, RunCancelledError
from batchrouter.run import Progress


class Teller:
    """Opens the scene's run as often as its story needs."""

    def __init__(self, scene: dict[str, Any]) -> None:
        self.job = Job.model_validate(scene["job"])
        self.settings = Settings(**scene["settings"])
        self.run_key: str = scene["run_key"]
        self.timeout_s: float = scene["timeout_s"]
        self.max_run_usd = Decimal(scene["max_run_usd"]) if "max_run_usd" in scene else None

    def open(self, **options: Any) -> Run:
        settings = options.pop("settings", self.settings)
        return Run.open(self.job, run_key=self.run_key, settings=settings, **options)

    def whole(self) -> Receipt:
        with self.open() as run:
            return run.execute(timeout_s=self.timeout_s)

    def claimed(self) -> Receipt:
        with self.open(attempt="the first") as run:
            return run.execute(timeout_s=self.timeout_s)

    def bought_again(self) -> Receipt:
        with self.open() as run:
            if run.status().generation == 0:
                run.execute(timeout_s=self.timeout_s)
        with self.open() as run:
            how = "rebuy" if run.status().generation == 0 else "resume"
        with self.open(on_rerun=how) as run:
            return run.execute(timeout_s=self.timeout_s)

    def cancelled(self) -> Receipt | str:
        """Cancelled when its batch is out: nothing, or what had been sent, is landed."""
        with self.open() as run:
            with suppress(RunCancelledError):
                run.submit()
                run.cancel("not wanted any more")
            try:
                return run.execute(timeout_s=self.timeout_s)
            except RunCancelledError as error:
                return error.code

    def stopped_at_the_budget(self) -> Receipt | str:
        """Its second part's quote expires when money has become short."""
        short = self.settings.replace(max_run_usd=self.max_run_usd)
        with self.open() as run:
            if run.status().committed_usd > 0:
                run._context.settings = short

            def lower_the_cap(progress: Progress) -> None:
                if progress.stage == "submit" and progress.done == 1:
                    run._context.settings = short

            run._context.tell = lower_the_cap
            with suppress(BudgetExceededError):
                run.execute(timeout_s=self.timeout_s)
        with self.open(settings=short) as run:
            try:
                return run.execute(timeout_s=self.timeout_s)
            except BudgetExceededError as error:
                return error.code


STORIES: dict[str, Callable[[Teller], Receipt | str]] = {
    "whole": Teller.whole,
    "claimed": Teller.claimed,
    "bought again": Teller.bought_again,
    "cancelled": Teller.cancelled,
    "stopped at the budget": Teller.stopped_at_the_budget,
}


def main() -> None:
    told = STORIES[sys.argv[1]](Teller(json.loads(sys.stdin.read())))
    end = told.to_dict() if isinstance(told, Receipt) else told
    print(json.dumps({"end": end}), flush=True)


if __name__ == "__main__":
    main()
