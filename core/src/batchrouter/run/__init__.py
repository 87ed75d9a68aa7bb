"""One execution of a job: what `batchrouter run` and every orchestrator carry on.

`Run.open(job, run_key=…)` creates or resumes it, `advance()` does all that can be done now.
"""

from batchrouter.run.answers import Done, QuoteSummary, Waiting
from batchrouter.run.cancelling import cancel_run
from batchrouter.run.catalog import RunStatus, list_runs
from batchrouter.run.ended import EndedBatch, Look, look_for_ended
from batchrouter.run.progress import Progress
from batchrouter.run.receipt import LaneReceipt, Receipt, RoundReceipt
from batchrouter.run.retention import PrunedRun, prune_runs
from batchrouter.run.run import Run
from batchrouter.run.tidings import Tidings
from batchrouter.run.waiting import async_watcher_for, check_mode, watcher_for
from batchrouter.run.watch import AsyncWatcher, Watcher
from batchrouter.run.watch_book import WaitMode

__all__ = [
    "AsyncWatcher",
    "Done",
    "EndedBatch",
    "LaneReceipt",
    "Look",
    "Progress",
    "PrunedRun",
    "QuoteSummary",
    "Receipt",
    "RoundReceipt",
    "Run",
    "RunStatus",
    "Tidings",
    "WaitMode",
    "Waiting",
    "Watcher",
    "async_watcher_for",
    "cancel_run",
    "check_mode",
    "list_runs",
    "look_for_ended",
    "prune_runs",
    "watcher_for",
]
