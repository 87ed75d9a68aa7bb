"""Telling of each ended batch once, over restarts of whoever tells: for watchers of events.

What was told stands in one small file below the runs URL, so that a watcher that starts anew,
on whichever host, goes on where the last one was.
"""

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import fsspec

from batchrouter.api.settings import Settings
from batchrouter.errors import ConfigError
from batchrouter.run.ended import EndedBatch, look_for_ended
from batchrouter.run.folder import storage_errors

if TYPE_CHECKING:
    from batchrouter.api.client import Client
    from batchrouter.webhooks.inbox import Inbox

_FOLDER = "_watchers"
_MOST_TOLD = 5_000


class Tidings:
    """Which ended batches have not been told of yet.

    The first watcher of a name begins with what ends from then on. One that dies after it told
    of a batch and before `told` will tell of it again: at least once, and as a rule once.

    Args:
        client: Whose account and namespace are watched, and whose settings say where runs are.
        name: Of the watcher; each name hears of every batch.

    Raises:
        ConfigError: The runs URL has no file system.

    Example:
        >>> tidings = Tidings(client, "nightly")                      # doctest: +SKIP
        >>> for batch in tidings.look():                              # doctest: +SKIP
        ...     tell(batch)
        ...     tidings.told(batch)
    """

    def __init__(self, client: "Client", name: str, *, inbox: "Inbox | None" = None) -> None:
        self._client = client
        self._inbox = inbox
        self._fs, self._path = _place(client.settings, name)
        self._cursor: str | None = None
        self._next_cursor: str | None = None
        self._to_tell: set[str] = set()
        self._told: dict[str, None] = {}
        self._is_known = self._load()

    def look(self) -> list[EndedBatch]:
        """Look once for batches that ended and were not told of.

        Raises:
            BatchrouterError: The API, the inbox or the runs URL cannot be read now; look again.
        """
        found = look_for_ended(self._client, self._cursor, inbox=self._inbox)
        if not self._is_known:
            self._told.update(dict.fromkeys(each.batch_id for each in found.ended))
            self._is_known = found.is_whole
            self._keep(found.cursor)
            return []
        fresh = [each for each in found.ended if each.batch_id not in self._told]
        self._to_tell = {each.batch_id for each in fresh}
        self._next_cursor = found.cursor
        if not fresh:
            # Written down only with news: what an old cursor shows again is known by its id.
            self._cursor = found.cursor
        return fresh

    def told(self, batch: EndedBatch) -> None:
        """Remember that a batch was told of.

        Raises:
            StorageError: It cannot be written; the batch may be told of again.
        """
        self._told[batch.batch_id] = None
        self._to_tell.discard(batch.batch_id)
        for oldest in list(self._told)[: max(0, len(self._told) - _MOST_TOLD)]:
            del self._told[oldest]
        self._keep(self._cursor if self._to_tell else self._next_cursor)

    def _load(self) -> bool:
        with storage_errors("reading what a watcher told"):
            try:
                kept: dict[str, Any] = json.loads(self._fs.cat_file(self._path))
            except FileNotFoundError:
                return False
            except ValueError:
                raise ConfigError(
                    f"{self._path} is damaged; remove it, and the watcher begins with what ends"
                    " from then on"
                ) from None
        self._cursor = kept["cursor"]
        self._told = dict.fromkeys(kept["told"])
        return True

    def _keep(self, cursor: str | None) -> None:
        self._cursor = cursor
        body = json.dumps({"cursor": cursor, "told": list(self._told)}).encode()
        with storage_errors("writing down what a watcher told"):
            self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
            if "file" in self._fs.protocol:
                self._fs.pipe_file(f"{self._path}.new", body)
                os.replace(f"{self._path}.new", self._path)  # noqa: PTH105 - a path of fsspec's
            else:
                self._fs.pipe_file(self._path, body)


def _place(settings: Settings, name: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(settings.runs_url, **settings.storage_options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"runs_url: {error}") from None
    whole = f"{settings.base_url}\0{settings.identity_namespace}\0{name}"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return fs, f"{root.rstrip('/')}/{_FOLDER}/{digest}.json"
