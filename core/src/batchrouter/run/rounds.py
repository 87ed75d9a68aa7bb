"""Retry rounds: what did not succeed is sent again, as a small manifest of its own.

A round begins when every batch before it has ended and lies in the run folder. Which items it
sends, only their results say; from then on it is bought, watched and collected like the first one.
"""

from typing import TYPE_CHECKING

from batchrouter.errors import DamagedManifestError
from batchrouter.run.buying import end_rounds
from batchrouter.run.collecting import collect_damaged
from batchrouter.run.context import RunContext
from batchrouter.run.decide import is_winding_down, newest_round, was_sent
from batchrouter.run.events import RoundBuilt
from batchrouter.run.folder import storage_errors
from batchrouter.run.outcome import parts_of_round
from batchrouter.run.progress import Progress
from batchrouter.run.state import RunState

if TYPE_CHECKING:
    from batchrouter.landing.report import PartToLand
    from batchrouter.landing.resending import SentPart


def begin_round(context: RunContext) -> None:
    """Write the manifest of the items to be sent again, and journal it; or that there are none.

    Raises:
        LandingError: The run folder's own files are not what the run wrote.
        ManifestError: An item is larger than the job's `parts` now allow.
        StorageError: The run folder cannot be read, or takes no more.
        APIError: An artifact in the run folder is damaged, and the API has no other.
    """
    from batchrouter.landing.resending import build_round  # noqa: PLC0415 - loads pyarrow
    from batchrouter.manifest.parts import PartLimits  # noqa: PLC0415 - loads pyarrow

    state = context.state
    begun = (state.generation, state.round)
    number = state.round + 1
    parts = context.job.parts
    collect_damaged(context)
    sent, resent = _sent_before(context)
    rows = sum(each.part.row_count for each in sent)
    try:
        with storage_errors("writing the manifest"):
            built = build_round(
                context.job,
                fs=context.folder.fs,
                sent=sent,
                resent=resent,
                statuses=_statuses(context),
                folders=(context.folder.ensure("manifest"), context.folder.ensure("rows")),
                token=context.folder.new_name(f"{state.generation}-round-{number}"),
                limits=PartLimits.of(parts),
                is_packed=parts is not None and parts.compression is not None,
                max_output_tokens=context.manifest.max_output_tokens,
                on_progress=lambda done: context.tell(
                    Progress("build", done, rows, "rows", f"round {number}")
                ),
            )
    except DamagedManifestError as error:
        end_rounds(context, "no_manifest", str(error))
        return
    if built is None:
        end_rounds(context, "nothing_to_resend", "no item is to be sent again")
        return

    def still(now: RunState) -> bool:
        is_here = (now.generation, now.round) == begun and now.rounds_ended is None
        return is_here and now.landed is None and not is_winding_down(now)

    context.journal.append(
        RoundBuilt(generation=begun[0], round=number, manifest=built.to_dict()), still=still
    )


def _statuses(context: RunContext) -> frozenset[str]:
    """Choose which rows the next round sends."""
    from batchrouter.landing.resending import FAILED, INVALID  # noqa: PLC0415 - loads pyarrow

    if context.state.is_rest_due:
        return FAILED
    number, rounds = context.state.retry_count + 1, context.rounds
    failed = FAILED if number <= rounds.failed else frozenset[str]()
    return failed | (INVALID if number <= rounds.invalid else frozenset[str]())


def _sent_before(context: RunContext) -> "tuple[list[SentPart], list[list[PartToLand]]]":
    """Give the parts whose items are looked at, and what was sent of them again since."""
    from batchrouter.landing.resending import SentPart  # noqa: PLC0415 - loads pyarrow

    state = context.state
    resent: list[list[PartToLand]] = []
    if state.is_rest_due:
        looked_at, allowed = 0, None
        resent = [
            [part for part in parts_of_round(context, later) if part.artifact_path is not None]
            for later in range(1, state.round + 1)
        ]
    else:
        looked_at = state.round
        allowed = {each.batch_id for each in newest_round(state) if was_sent(each)}
    manifest = context.manifests[looked_at]
    sent = [
        SentPart(
            part=part,
            manifest_path=context.folder.path("manifest", built.manifest_path),
            sha256=built.sha256,
        )
        for part, built in zip(parts_of_round(context, looked_at), manifest.parts, strict=True)
        if built.item_count and (allowed is None or part.batch_id in allowed)
    ]
    return sent, resent
