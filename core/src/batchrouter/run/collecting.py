"""Artifacts in the run folder: copied whole, and copied again if they are not whole any more.

Providers and routers forget, so the table is written from the copy alone.
"""

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from batchrouter.errors import APIError, BatchFailedError, GoneError, LandingError, NotFoundError
from batchrouter.killpoints import reached
from batchrouter.run.context import RunContext
from batchrouter.run.decide import batches_to_collect
from batchrouter.run.events import Collected
from batchrouter.run.folder import storage_errors
from batchrouter.run.progress import Progress
from batchrouter.run.state import Purchase

if TYPE_CHECKING:
    from batchrouter.api.models import ArtifactLink

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20


def collect(context: RunContext) -> None:
    """Copy the artifacts of ended batches into the run folder, whole and checked.

    Raises:
        ArtifactError: What came is not what was promised; nothing of it is used.
        LandingError: The artifact has expired at the API.
        APIError: The API refuses.
        StorageError: The run folder takes no more.
    """
    if context.is_on_spark:
        _collect_on_spark(context)
    for purchase in batches_to_collect(context.state):
        _collect_one(context, purchase)


def _collect_on_spark(context: RunContext) -> None:
    """Have the executors copy what they can; the rest is left to who asks the API for it."""
    from batchrouter.spark.collecting import WAVE, copied_on_spark  # noqa: PLC0415 - loads pyarrow
    from batchrouter.spark.session import session_of  # noqa: PLC0415 - as above

    wanted = [each for each in batches_to_collect(context.state) if _is_whole_at_the_api(each)]
    if len(wanted) == 1:
        return  # one download is no work to share
    for first in range(0, len(wanted), WAVE):
        signed = [
            (purchase, link)
            for purchase in wanted[first : first + WAVE]
            if (link := _signed(context, purchase)) is not None
        ]
        reached("download.before")
        copies = copied_on_spark(
            [link for _, link in signed],
            spark=session_of(context.job),
            fs=context.folder.fs,
            settings=context.settings,
            artifact_dir=context.folder.ensure("artifact"),
            token=context.folder.token,
        )
        reached("download.after")
        for (purchase, _), copy in zip(signed, copies, strict=True):
            if copy is not None:
                context.tell(
                    Progress("download", copy.bytes, copy.bytes, "bytes", purchase.batch_id)
                )
                _note(context, purchase, Collected(batch_id=purchase.batch_id, **asdict(copy)))


def _is_whole_at_the_api(purchase: Purchase) -> bool:
    return purchase.ended is not None and purchase.ended.state == "succeeded"


def _signed(context: RunContext, purchase: Purchase) -> "ArtifactLink | None":
    try:
        return context.client.artifact_url(purchase.batch_id)
    except APIError as error:
        _log.info("%s: no URL for the executors: %s", purchase.batch_id, error)
        return None


def collect_damaged(context: RunContext) -> None:
    """Copy those artifacts again whose copy is gone or is not what was collected.

    What this process has copied itself is not read again: it was checked as it came.

    Raises:
        LandingError: The API has it no more; a backup of the run folder may.
        ArtifactError: What came is not what was promised; nothing of it is used.
        APIError: The API refuses.
        StorageError: The run folder cannot be read or written.
    """
    for purchase in context.state.current:
        known = purchase.collected
        if known is None or known.artifact_name is None or _is_whole(context, known):
            continue
        removed_at = context.state.removed.get("artifact")
        told = "is damaged" if removed_at is None else f"was removed on {removed_at:%Y-%m-%d}"
        _log.warning("the copy of %s %s; the API is asked for another", purchase.batch_id, told)
        try:
            _collect_one(context, purchase)
        except (GoneError, NotFoundError, BatchFailedError) as error:
            # Landed from a shorter copy, paid results would turn into `missing` rows.
            raise LandingError(
                f"the copy of batch {purchase.batch_id} in the run folder {told}, and the API "
                f"has it no more: {_what_is_left(context, known)}"
            ) from error


def _what_is_left(context: RunContext, known: Collected) -> str:
    if context.state.landed is None or "artifact" not in context.state.removed:
        return f"restore {known.artifact_name}. Nothing was landed."
    return (
        "the table cannot be written anew from this run, and stays as it was landed. "
        "on_rerun='rebuy' (CLI: --rebuy) buys it anew."
    )


def _is_whole(context: RunContext, known: Collected) -> bool:
    name = known.artifact_name or ""
    path = context.folder.path("artifact", name)
    if context.folder.size_of(path) != known.bytes:
        return False
    if name.startswith(context.folder.token) or not known.sha256:
        return True
    digest = hashlib.sha256()
    with storage_errors("reading the artifact"), context.folder.fs.open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest() == known.sha256.lower()


def _collect_one(context: RunContext, purchase: Purchase) -> None:
    context.folder.ensure("artifact")
    name = context.folder.new_name(f"part-{purchase.part:05d}.jsonl")
    reached("download.before")
    collected = _copied(context, purchase, name)
    reached("download.after")
    _note(context, purchase, collected)


def _note(context: RunContext, purchase: Purchase, collected: Collected) -> None:
    before = purchase.collected
    context.journal.append(
        collected,
        still=lambda state: state.purchases[purchase.batch_id].collected == before,
    )


def _copied(context: RunContext, purchase: Purchase, name: str) -> Collected:
    path = context.folder.path("artifact", name)
    partial = purchase.ended is not None and purchase.ended.state != "succeeded"
    try:
        link = _download(context, purchase, path, partial=partial)
    except BatchFailedError as error:
        if purchase.collected is not None:
            raise  # it was here before: without it, results that were landed would be lost
        # The other parts' results shall not lie here for ever because of this one.
        _log.warning("its rows are landed without results: %s", error)
        return Collected(batch_id=purchase.batch_id, artifact_name=None, bytes=0, sha256="")
    except GoneError as error:
        if purchase.collected is not None:
            raise
        raise LandingError(
            f"the results of batch {purchase.batch_id} are gone: the API kept them for as long as "
            "it promised, and nobody copied them before. The table is as it was, and nothing is "
            "bought again by itself: on_rerun='rebuy' (CLI: --rebuy) buys it anew."
        ) from error
    return Collected(
        batch_id=purchase.batch_id,
        artifact_name=name,
        bytes=link.bytes or context.folder.size_of(path) or 0,
        sha256=link.sha256 or "",
    )


def _download(
    context: RunContext, purchase: Purchase, path: str, *, partial: bool
) -> "ArtifactLink":

    def tell(received: int, total: int) -> None:
        reached("download.during")
        context.tell(Progress("download", received, total, "bytes", purchase.batch_id))

    with storage_errors("writing the artifact"):
        if context.folder.is_local:
            return context.client.download_artifact(
                purchase.batch_id, Path(path), partial=partial, on_progress=tell
            )
        with context.folder.fs.open(path, "wb") as file:
            return context.client.download_artifact(
                purchase.batch_id, file, partial=partial, on_progress=tell
            )
