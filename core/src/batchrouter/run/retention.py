"""What a run's folder lets go of, and when: by its job's `retain`, or because a person prunes.

Only what nothing needs any more is touched: no open purchase, no open batch, nothing still to
land. The removal is an event first, created exclusively, so that an attempt which opens the run
anew at the same moment either comes first and keeps its files, or knows. Then the files go that
were there before the event. A removal that was killed is gone on with by the next one.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from batchrouter.errors import BatchrouterError, JournalError
from batchrouter.job.retain import Retain
from batchrouter.killpoints import reached
from batchrouter.run.catalog import run_folders, status_of
from batchrouter.run.context import RunContext
from batchrouter.run.decide import Step, decide, has_rest, rounds_told
from batchrouter.run.events import FolderPart, Removed
from batchrouter.run.folder import RunFolder
from batchrouter.run.journal import Journal, LostRaceError
from batchrouter.run.state import RunState

_log = logging.getLogger(__name__)

_FOLDERS: Final[dict[FolderPart, tuple[str, ...]]] = {
    "manifest": ("manifest",),
    "artifact": ("artifact", "rejects"),
    "rows": ("rows",),
}
_BY_AGE: Final[tuple[FolderPart, ...]] = ("manifest", "artifact", "rows")
_ALL: Final[tuple[FolderPart, ...]] = (*_BY_AGE, "journal")


@dataclass(frozen=True, slots=True)
class PrunedRun:
    """What pruning did with one run.

    Attributes:
        folder: The run's folder below the runs URL.
        removed: The parts that went, or would go: ``manifest``, ``artifact``, ``rows``, or
            ``journal`` for the whole folder.
        file_count: Files that went with them.
        size_bytes: Their size.
        left: Why nothing was removed; None when something was.
        has_failed: True when it was left because its folder cannot be read or written.
    """

    job: str
    run_key: str
    folder: str
    removed: tuple[FolderPart, ...] = ()
    file_count: int = 0
    size_bytes: int = 0
    left: str | None = None
    has_failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON's types."""
        return {**asdict(self), "removed": list(self.removed)}


def remove_due(context: RunContext) -> None:
    """Remove what the job's `retain` says of a landed run; the journal is left to pruning.

    Never fails: the table is landed, and what stays is removed another time.
    """
    retain = context.job.retain
    if retain is None:
        return
    try:
        while True:
            due = _due(context.state, retain, datetime.now(UTC))
            parts: tuple[FolderPart, ...] = tuple(part for part in due if part != "journal")
            try:
                _remove(context.folder, context.journal, parts, "retain")
            except LostRaceError:
                continue
            return
    except BatchrouterError as error:
        _log.warning("what retain lets go of was not removed: %s", error)


def prune_runs(
    runs_url: str,
    *,
    older_than: timedelta | None = None,
    job: str | None = None,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[PrunedRun]:
    """Remove what is due from the runs below a runs URL; safe beside runs and other prunings.

    What is due: what each job's `retain` said when the run was landed. With `older_than`, also
    manifest, results and row snapshot of every run that ended so long ago. The journal stays
    until `retain.journal` ends: it is what knows that the run was bought.

    Args:
        runs_url: Where the runs are, any fsspec URL.
        older_than: How long ago a run must have ended.
        job: Only this job's runs.
        dry_run: Say what would go, and remove nothing.
        storage_options: fsspec's options for the URL.

    Yields:
        One result a run, also for those that were left; the run's files are gone by then.

    Raises:
        StorageError: The runs URL cannot be listed. What is wrong with one run alone is told
            in its result.

    Example:
        >>> list(prune_runs("memory://runs", older_than=timedelta(days=30)))
        []
    """
    root = RunFolder.below(runs_url, "", dict(storage_options or {}))
    for name in run_folders(root, job):
        folder = RunFolder(root.fs, root.path(name))
        try:
            pruned = _prune(folder, name, older_than, dry_run=dry_run)
        except BatchrouterError as error:
            pruned = PrunedRun("", "", name, left=str(error), has_failed=True)
        if pruned is not None:
            yield pruned


def _prune(
    folder: RunFolder, name: str, older_than: timedelta | None, *, dry_run: bool
) -> PrunedRun | None:
    while True:
        journal = Journal(folder)
        state = journal.load()
        if state.opened is None:
            return _end_removal(folder, journal, name, dry_run=dry_run)
        job, run_key = state.opened.job_name, state.opened.run_key
        left = why_open(state)
        if left is not None:
            return PrunedRun(job, run_key, name, left=left)
        now = datetime.now(UTC)
        parts = _to_prune(state, older_than, now)
        before = set(state.removed)
        try:
            files = _remove(folder, journal, parts, _reason(older_than), dry_run=dry_run)
        except LostRaceError:
            continue
        gone: tuple[FolderPart, ...] = tuple(
            part for part in parts if files[part] or part not in before
        )
        if not any(files.values()):
            return PrunedRun(job, run_key, name, left=_why_nothing(state, older_than))
        return _pruned(job, run_key, name, gone, files)


def _end_removal(
    folder: RunFolder, journal: Journal, name: str, *, dry_run: bool
) -> PrunedRun | None:
    """Go on with the removal of a folder whose journal has lost its beginning."""
    if not journal.is_being_removed():
        journal.check_whole()
        return None
    files = folder.files()
    if not dry_run:
        _remove_folder(folder, journal)
    return _pruned("", "", name, ("journal",), {"journal": files})


def _pruned(
    job: str,
    run_key: str,
    name: str,
    parts: tuple[FolderPart, ...],
    files: Mapping[FolderPart, Mapping[str, int]],
) -> PrunedRun:
    # With the whole folder go those that are counted by themselves.
    each = {path: size for found in files.values() for path, size in found.items()}
    return PrunedRun(job, run_key, name, parts, len(each), sum(each.values()))


def why_open(state: RunState) -> str | None:
    """Say what of a run is open, so that nothing of it may be removed; None when nothing is."""
    if state.open_intents:
        return "open: whether a purchase exists is not settled"
    if state.open_batches:
        return f"open: batch {state.open_batches[0].batch_id} has not ended"
    if decide(state, rounds_told(state)) not in {Step.FINISHED, Step.GIVE_UP}:
        return f"open: not landed yet ({status_of(state, '').stage})"
    return None


def _to_prune(
    state: RunState, older_than: timedelta | None, now: datetime
) -> tuple[FolderPart, ...]:
    parts = set(_due(state, _recorded(state), now))
    ended_at = _ended_at(state)
    if older_than is not None and ended_at is not None and ended_at + older_than <= now:
        parts |= set(_BY_AGE)
    # What an earlier pruning has noted and not ended.
    parts |= {part for part in _ALL if part in state.removed}
    return _ALL if "journal" in parts else tuple(part for part in _ALL if part in parts)


def _recorded(state: RunState) -> Retain:
    if state.landed is None or state.landed.retain is None:
        return Retain()
    try:
        return Retain.model_validate(state.landed.retain)
    except ValueError as error:
        raise JournalError(f"the journal's {error}: upgrade batchrouter-core") from error


def _due(state: RunState, retain: Retain, now: datetime) -> tuple[FolderPart, ...]:
    if state.landed_at is None:
        return ()
    due: list[FolderPart] = []
    parts: tuple[FolderPart, ...] = ("manifest", "artifact", "journal")
    for part in parts:
        kept = retain.after(part)
        if kept is None or (not kept and part != "journal" and has_rest(state)):
            continue  # a demand for the rest needs the lines and the results that there are
        # Nought is due whatever the clock of the host says that has landed it.
        if not kept or state.landed_at + kept <= now:
            due.append(part)
    return tuple(due)


def _ended_at(state: RunState) -> datetime | None:
    return state.landed_at or state.moved_at


def _reason(older_than: timedelta | None) -> str:
    return "retain" if older_than is None else f"older than {older_than.total_seconds():.0f} s"


def _why_nothing(state: RunState, older_than: timedelta | None) -> str:
    if state.removed:
        return f"was pruned before: {', '.join(state.removed)}"
    if state.landed is not None and state.landed.retain:
        return "not due yet by its job's retain"
    if older_than is not None:
        return "ended too short a time ago"
    return "its job has no retain; --older-than removes its files by age"


def _remove(
    folder: RunFolder,
    journal: Journal,
    parts: tuple[FolderPart, ...],
    reason: str,
    *,
    dry_run: bool = False,
) -> dict[FolderPart, dict[str, int]]:
    """Remove parts of a folder; returns the files of each that went, or would go.

    Raises:
        LostRaceError: Another attempt wrote to the journal first: decide again.
        StorageError: A file cannot be removed; calling again goes on.
    """
    state = journal.state
    generation = state.generation
    # Listed first: what a new generation writes afterwards is none of these.
    files: dict[FolderPart, dict[str, int]] = {part: _files(folder, part) for part in parts}
    if dry_run or not any(files.values()):
        return files
    new: tuple[FolderPart, ...] = tuple(part for part in parts if part not in state.removed)
    if new:
        journal.append(Removed(generation=generation, parts=new, reason=reason))
    elif journal.load().generation != generation or not set(parts) <= set(state.removed):
        raise LostRaceError("removed")
    if "journal" in parts:
        _remove_folder(folder, journal)
        return files
    for path in [path for found in files.values() for path in found]:
        reached("prune.before_delete")
        folder.remove(path)
        reached("prune.after_delete")
    return files


def _files(folder: RunFolder, part: FolderPart) -> dict[str, int]:
    if part == "journal":
        return folder.files()
    found: dict[str, int] = {}
    for below in _FOLDERS[part]:
        found |= folder.files(below)
    return found


def _remove_folder(folder: RunFolder, journal: Journal) -> None:
    inside = folder.path("journal", "")
    for path in folder.files():
        if not path.startswith(inside):
            reached("prune.before_delete")
            folder.remove(path)
            reached("prune.after_delete")
    journal.remove()
    folder.remove_empty()
