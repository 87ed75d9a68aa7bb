"""Artifacts on Spark: each task copies one from its signed URL into the run folder.

The driver asks the API for the URLs, since the key stays with it, and hands them to tasks that need
nothing else. What a task does not bring is told, and the driver copies it itself.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, cast

import fsspec

from batchrouter.api.calls import Caller
from batchrouter.api.downloads import download_signed
from batchrouter.api.models import ArtifactLink
from batchrouter.api.settings import Settings
from batchrouter.api.steps import run
from batchrouter.api.targets import WriterTarget
from batchrouter.api.transport import SyncTransport
from batchrouter.errors import BatchrouterError
from batchrouter.spark.session import Session
from batchrouter.spark.tasks import Json, attempt_name, each

_log = logging.getLogger(__name__)

WAVE = 64
"""Artifacts a Spark job: a signed URL lives for minutes, and must not expire in Spark's queue."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An artifact that stands in the run folder, whole and checked, under a name of its own."""

    artifact_name: str
    bytes: int
    sha256: str


def copied_on_spark(
    links: Sequence[ArtifactLink],
    *,
    spark: Session,
    fs: fsspec.AbstractFileSystem,
    settings: Settings,
    artifact_dir: str,
    token: str,
) -> list[Copy | None]:
    """Copy artifacts, each by a task of its own that asks for the rest when a connection breaks.

    Args:
        links: At most `WAVE`, just signed. Their URLs go to the executors; no key does.
        spark: Where the tasks run.
        fs: The filesystem of the run folder; sent to the executors.
        settings: How long to wait, and how often to try again.
        artifact_dir: An existing folder.
        token: This attempt's own name; the copies' names begin with it.

    Returns:
        For each link its copy, or None where no task brought it; nothing is left of it then.

    Raises:
        WorkerDiedError: A task died as often as Spark tries it.
    """
    task = _CopyTask(
        # Whatever else the settings hold, the key above all, stays here.
        rules=settings.model_dump(
            include={"base_url", "timeout_s", "max_attempts", "retry_wait_s", "max_retry_wait_s"}
        ),
        fs=fs,
        artifact_dir=artifact_dir,
        token=token,
    )
    # A link leaves its URL out of dumps, since it is a secret.
    units = [{**link.model_dump(mode="json"), "url": link.url} for link in links]
    copies: list[Copy | None] = []
    for link, told in zip(links, each(spark, units, task.copy), strict=True):
        if "failed" in told:
            _log.warning("%s was not copied on Spark: %s", link.batch_id, told["failed"])
        copies.append(None if "failed" in told else Copy(**told))
    return copies


@dataclass(frozen=True, slots=True)
class _CopyTask:
    """What each task is given, and what it does."""

    rules: Json
    fs: fsspec.AbstractFileSystem
    artifact_dir: str
    token: str

    def copy(self, unit: Json) -> Json:
        """Copy one artifact, and say how it is called and what it is; or why it is not there."""
        settings = Settings(**self.rules)
        link = ArtifactLink.model_validate(unit)
        name = f"{attempt_name(self.token, 0)}.jsonl"
        path = f"{self.artifact_dir}/{name}"
        transport = SyncTransport(settings, needs_key=False)
        try:
            with self.fs.open(path, "wb") as file:
                target = WriterTarget(cast("IO[bytes]", file), on_progress=None)
                run(download_signed(Caller.from_settings(settings), link, target), transport)
        except (BatchrouterError, OSError) as error:
            with suppress(OSError):
                self.fs.rm_file(path)
            return {"failed": str(error)}
        finally:
            transport.close()
        return {"artifact_name": name, "bytes": target.received, "sha256": target.sha256}
