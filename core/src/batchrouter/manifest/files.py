"""Many records, parted by a number into files, so that one part at a time can be held."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchrouter.manifest.storing import storing

_HELD_BYTES = 4 << 20


class NumberedFiles:
    """Records of one kind, in files of a folder.

    Args:
        folder: A folder of the local disk.
        name: Starts the files' names.
        kind: Of a record.
    """

    def __init__(self, folder: Path, name: str, kind: np.dtype[Any]) -> None:
        self._folder = folder
        self._name = name
        self._kind = kind
        self._waiting: dict[int, list[npt.NDArray[Any]]] = {}
        self._waiting_bytes = 0

    def add(self, records: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> None:
        """Put each record into the file of its number.

        Raises:
            StorageError: The folder takes no more.
        """
        order = np.argsort(numbers, kind="stable")
        records, numbers = records[order], numbers[order]
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        for some in np.split(np.arange(len(records)), cuts) if len(records) else ():
            self._waiting.setdefault(int(numbers[some[0]]), []).append(records[some])
        self._waiting_bytes += records.nbytes
        if self._waiting_bytes >= _HELD_BYTES:
            self._spill()

    def _spill(self) -> None:
        for number, records in self._waiting.items():
            with storing(str(self._path(number))), self._path(number).open("ab") as file:
                file.write(np.concatenate(records).data)
        self._waiting, self._waiting_bytes = {}, 0

    def take(self, number: int) -> npt.NDArray[Any]:
        """Read a file's records in the order in which they came, and remove it."""
        held = self._waiting.pop(number, [])
        path = self._path(number)
        if path.exists():
            with storing(str(path)):
                held.insert(0, np.fromfile(path, self._kind))
                path.unlink()
        return np.concatenate(held) if held else np.empty(0, self._kind)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:05d}"
