"""Which runs there are and how far each has come, from their journals alone."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from batchrouter.money import format_usd
from batchrouter.run.decide import RetryRounds, Step, decide, rounds_told
from batchrouter.run.folder import RunFolder
from batchrouter.run.identity import slug
from batchrouter.run.journal import Journal
from batchrouter.run.state import RunState

_STAGE = {
    Step.BUILD: "opened",
    Step.BUY: "built",
    Step.SETTLE: "buying",
    Step.WATCH: "waiting",
    Step.COLLECT: "ended",
    Step.RESEND: "ended",
    Step.LAND: "ended",
    Step.FINISHED: "landed",
}


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run has come.

    Attributes:
        stage: ``opened``, ``built``, ``buying``, ``waiting``, ``ended``, ``landed``, or how
            it ended without a table: ``cancelled`` or ``failed``.
        committed_usd: What may be billed so far: settled, or quoted where it is open.
        folder: The run's folder below the runs URL.
        bought_at: When the first batch was bought that the table's rows are from.
        removed: What retention has taken out of it: ``manifest``, ``artifact``, ``rows``.
    """

    job: str
    run_key: str
    stage: str
    generation: int
    row_count: int | None
    item_count: int | None
    committed_usd: Decimal
    batch_ids: tuple[str, ...]
    opened_at: datetime | None
    updated_at: datetime | None
    folder: str
    bought_at: datetime | None = None
    removed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON's types."""
        plain = asdict(self)
        plain["committed_usd"] = format_usd(self.committed_usd)
        plain["batch_ids"] = list(self.batch_ids)
        plain["removed"] = list(self.removed)
        for name in ("opened_at", "updated_at", "bought_at"):
            plain[name] = plain[name] and plain[name].isoformat()
        return plain


def status_of(state: RunState, folder: str, rounds: RetryRounds | None = None) -> RunStatus:
    """Say how far a run has come; `rounds` are those of its job, else what the journal has."""
    manifest = state.manifest or {}
    step = decide(state, rounds or rounds_told(state))
    ended_without = "cancelled" if state.cancel_asked is not None else "failed"
    return RunStatus(
        job=state.opened.job_name if state.opened else "",
        run_key=state.opened.run_key if state.opened else "",
        stage=_STAGE.get(step, ended_without),
        generation=state.generation,
        row_count=manifest.get("row_count"),
        item_count=manifest.get("item_count"),
        committed_usd=state.committed_usd,
        batch_ids=tuple(each.batch_id for each in state.purchases.values()),
        opened_at=state.opened_at,
        updated_at=state.last_at,
        folder=folder,
        bought_at=min((each.bought_at for each in state.current), default=None),
        removed=tuple(state.removed),
    )


def list_runs(
    runs_url: str,
    *,
    job: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[RunStatus]:
    """Read the runs below a runs URL, job by job.

    Args:
        runs_url: Where the runs are.
        job: Only this job's folder.
        storage_options: fsspec's options for the URL.

    Yields:
        One status a run; a folder without a journal is passed over.

    Raises:
        JournalError: A run's journal is damaged or newer than this version.
        StorageError: The URL cannot be read.
    """
    root = RunFolder.below(runs_url, "", dict(storage_options or {}))
    for folder in run_folders(root, job):
        journal = Journal(RunFolder(root.fs, root.path(folder)))
        state = journal.load()
        if state.opened is not None:
            yield status_of(state, folder)


def run_folders(root: RunFolder, job: str | None) -> Iterator[str]:
    """Name what may be a run's folder below a runs URL, as `<job>/<run>`."""
    for job_folder in [slug(job)] if job else root.names():
        for name in root.names(job_folder):
            yield f"{job_folder}/{name}"
