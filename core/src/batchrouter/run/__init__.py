"""One execution of a job: what `batchrouter run` and every orchestrator carry on.

`Run.open(job, run_key=…)` creates or resumes it, `advance()` does all that can be done now.
"""

from batchrouter.run.answers import Done, QuoteSummary, Waiting
from batchrouter.run.catalog import RunStatus, list_runs
from batchrouter.run.ended import EndedBatch, Look, look_for_ended
from batchrouter.run.progress import Progress
from batchrouter.run.receipt import LaneReceipt, Receipt
from batchrouter.run.retention import PrunedRun, prune_runs
from batchrouter.run.run import Run

__all__ = [
    "Done",
    "EndedBatch",
    "LaneReceipt",
    "Look",
    "Progress",
    "PrunedRun",
    "QuoteSummary",
    "Receipt",
    "Run",
    "RunStatus",
    "Waiting",
    "list_runs",
    "look_for_ended",
    "prune_runs",
]
