"""A run's history: a dense sequence of files, each created exclusively, none ever changed.

Two writers of one number cannot both win: the loser reads what the winner wrote and decides
again. There is no lock to break and no rename to lose, and the history is the audit.

The number alone is the file's name. (With the event's type in the name, two writers could
create different files for one number, and both would win.)
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from batchrouter.errors import JournalError, StorageError
from batchrouter.killpoints import reached
from batchrouter.run.events import ENTRY, JOURNAL_VERSION, Entry, Fact, Removed, VersionOnly
from batchrouter.run.folder import RunFolder
from batchrouter.run.state import RunState

_FOLDER = "journal"
_SUFFIX = ".json"
_LOST = (
    "If it is lost for good, remove the run's whole folder: under the same run key the API names "
    "what was bought, and nothing is bought twice. (Under another key everything is bought anew.)"
)
_LATE_S = (0.0, 0.05, 0.25, 1.0, 4.0)
"""Pauses before an event that exists and cannot be read yet is looked at again: a network file
system may deny for seconds what another host has just created."""


class LostRaceError(Exception):
    """Another writer was first, and what we meant to write no longer holds: decide again."""


class Journal:
    """The events of one run, and the state that they add up to; threads may share it.

    Args:
        folder: The run's folder.

    Attributes:
        state: What all events read so far say.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        # Reentrant: a signal handler that cancels may interrupt an append of its own thread.
        self._turn = threading.RLock()
        self.state = RunState()

    def load(self) -> RunState:
        """Read the events that are new since the last look.

        Raises:
            JournalError: An event is missing in the middle, unreadable, or newer than this
                version of batchrouter.
            StorageError: The folder cannot be read.
        """
        with self._turn:
            while True:
                number = self.state.entry_count + 1
                try:
                    data = self._folder.read(self._path(number))
                except FileNotFoundError:
                    return self.state
                self._fold(self._parse(number, data))

    def _fold(self, entry: Entry) -> None:
        if entry.number != self.state.entry_count + 1:
            return  # the signal handler was faster
        try:
            self.state.apply(entry)
        except KeyError as error:
            raise JournalError(
                f"journal event {entry.number} in {self._folder.root}/{_FOLDER} speaks of "
                f"{error}, which no event before it made. Restore the folder. {_LOST}"
            ) from error

    def check_whole(self) -> None:
        """Refuse a history with a hole: what the missing event said may be a purchase.

        Raises:
            JournalError: Files beyond the first missing number exist, or the folder is
                being removed.
        """
        self._check_stays()
        numbers = self._numbers()
        last = self.state.entry_count
        if numbers and max(numbers) > last:
            self.load()
        if numbers and max(numbers) > self.state.entry_count:
            if self._says_removed(max(numbers)):
                raise JournalError(self._being_removed())
            raise JournalError(
                f"journal event {self.state.entry_count + 1} of {max(numbers)} is missing in "
                f"{self._folder.root}/{_FOLDER}. It may be a purchase, so nothing more is done: "
                f"restore the file. {_LOST}"
            )

    def append(self, fact: Fact, *, still: Callable[[RunState], bool] | None = None) -> None:
        """Write the next event.

        Args:
            fact: What has become true.
            still: Asked after a lost race: does the fact still need writing?

        Raises:
            LostRaceError: Another writer was first, and `still` is false or not given.
            StorageError: The event cannot be written; nothing was.
        """
        with self._turn:
            self._check_there()
            self._folder.ensure(_FOLDER)
            while True:
                self._check_stays()
                number = self.state.entry_count + 1
                entry = Entry(number=number, at=datetime.now(UTC), fact=fact)
                reached(f"journal.before_{fact.type}")
                try:
                    self._folder.create(self._path(number), ENTRY.dump_json(entry, indent=1))
                except FileExistsError:
                    self._load_past(number)
                    if still is None or not still(self.state):
                        raise LostRaceError(fact.type) from None
                    continue
                reached(f"journal.after_{fact.type}")
                self._fold(entry)
                return

    def remove(self) -> None:
        """Delete the journal's files, the event that says so last; another process may help.

        The first ones go first, since a history without its beginning is refused, while one
        without its end would be believed.

        Raises:
            StorageError: A file cannot be removed; calling again goes on.
        """
        found = self._folder.names(_FOLDER)
        names = [name for name in found if name.endswith(_SUFFIX)]
        drafts = [name for name in found if not name.endswith(_SUFFIX)]
        for name in (*drafts, *names):
            # Once the last event is gone the run key may have begun anew, under these names.
            if self._folder.size_of(self._folder.path(_FOLDER, names[-1])) is None:
                return
            reached("prune.before_delete")
            self._folder.remove(self._folder.path(_FOLDER, name))
            reached("prune.after_delete")

    def is_being_removed(self) -> bool:
        """True when the last event says that the whole folder goes, though the first may be gone.

        Raises:
            JournalError: That event is damaged or newer than this version of batchrouter.
            StorageError: The folder cannot be read.
        """
        last = max(self._numbers(), default=0)
        return last > 0 and self._says_removed(last)

    def _says_removed(self, number: int) -> bool:
        try:
            fact = self._parse(number, self._folder.read(self._path(number))).fact
        except FileNotFoundError:
            return False
        return isinstance(fact, Removed) and "journal" in fact.parts

    def _check_stays(self) -> None:
        if "journal" in self.state.removed:
            raise JournalError(self._being_removed())

    def _being_removed(self) -> str:
        return (
            f"{self._folder.root} is being removed, as its job's retain.journal says. "
            "`batchrouter runs prune` ends that; afterwards this run key begins anew."
        )

    def _check_there(self) -> None:
        # Who removes a run's folder under a live process must not find a history without its
        # beginning there afterwards: an empty place is adopted into, that one is refused.
        last = self.state.entry_count
        if last and self._folder.size_of(self._path(last)) is None:
            raise StorageError(
                f"journal event {last} in {self._folder.root}/{_FOLDER} has vanished. Restore the "
                f"run's folder and run the same run key again. {_LOST}"
            )

    def _load_past(self, number: int) -> None:
        for pause_s in _LATE_S:
            time.sleep(pause_s)
            if self.load().entry_count >= number:
                return
        raise StorageError(
            f"journal event {number} in {self._folder.root}/{_FOLDER} was written by another "
            "process and cannot be read. Run the same run key again to go on."
        )

    def _numbers(self) -> list[int]:
        return [
            int(name.removesuffix(_SUFFIX))
            for name in self._folder.names(_FOLDER)
            if name.removesuffix(_SUFFIX).isdigit() and name.endswith(_SUFFIX)
        ]

    def _path(self, number: int) -> str:
        return self._folder.path(_FOLDER, f"{number:06d}{_SUFFIX}")

    def _parse(self, number: int, data: bytes) -> Entry:
        where = f"journal event {number} in {self._folder.root}/{_FOLDER}"
        try:
            version = VersionOnly.model_validate_json(data).version
            if version > JOURNAL_VERSION:
                raise JournalError(
                    f"{where} has version {version}, and this batchrouter reads up to "
                    f"{JOURNAL_VERSION}: upgrade batchrouter-core to go on with this run."
                )
            entry = ENTRY.validate_json(data)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise JournalError(
                f"{where} is damaged ({problem}). It may be a purchase, so nothing more is done: "
                f"restore the file. {_LOST}"
            ) from error
        if entry.number != number:
            raise JournalError(f"{where} says that it is number {entry.number}")
        return entry
