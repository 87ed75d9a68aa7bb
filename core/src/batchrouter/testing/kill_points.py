"""The names of all kill points, so that a drill can go through every one of them.

`batchrouter.killpoints` says how they work. A test reads every ``reached("…")`` in the source
and fails when a name is missing here, or stands here and is reached nowhere.
"""

from typing import Final

_JOURNALED = (
    "opened",
    "claimed",
    "generation_opened",
    "pinned",
    "built",
    "round_built",
    "rounds_ended",
    "quoted",
    "uploaded",
    "intended",
    "refused",
    "bought",
    "cancel_asked",
    "stopped",
    "ended",
    "collected",
    "landed",
    "removed",
)
"""The types of a journal's events; each is written between two points."""

RUN_KILL_POINTS: Final[tuple[str, ...]] = (
    *(f"journal.{when}_{event}" for event in _JOURNALED for when in ("before", "after")),
    "build.before",
    "manifest.before_part",
    "manifest.before_close",
    "manifest.after_close",
    "manifest.after_part",
    "build.after",
    "upload.before_send",
    "api.mid_upload",
    "upload.after_send",
    "submit.before_send",
    "submit.after_send",
    "cancel.before_send",
    "cancel.after_send",
    "wait.during",
    "download.before",
    "download.during",
    "api.mid_download",
    "api.before_artifact_kept",
    "api.after_artifact_kept",
    "download.after",
    "round.before_build",
    "round.after_build",
    "landing.before_write",
    "landing.mid_write",
    "landing.before_quarantine",
    "landing.after_quarantine",
    "landing.before_commit",
    "landing.mid_commit",
    "landing.after_commit",
    "prune.before_delete",
    "prune.after_delete",
)
"""Where a process that carries on a run may die, in the order of a run."""

RECEIVER_KILL_POINTS: Final[tuple[str, ...]] = ("webhooks.before_put", "webhooks.after_put")
"""Where a webhook receiver may die."""

ROUTER_KILL_POINTS: Final[tuple[str, ...]] = (
    "quotes.before_commit",
    "quotes.after_commit",
    "objects.before_commit",
    "objects.after_commit",
    "files.before_commit",
    "files.after_commit",
    "create.before_commit",
    "create.after_commit",
    "cancel.before_commit",
    "cancel.after_commit",
    "work.before_claim",
    "work.after_claim",
    "work.before_plan_stored",
    "work.after_plan_stored",
    "work.before_send",
    "work.after_send",
    "lanes.before_upload",
    "lanes.after_upload",
    "lanes.after_intent",
    "lanes.before_create",
    "lanes.mid_create",
    "lanes.after_create",
    "lanes.after_accepted",
    "lanes.before_results_stored",
    "lanes.after_results_stored",
    "lanes.before_item",
    "lanes.after_item",
    "work.before_result_stored",
    "work.after_result_stored",
    "work.before_chunk_settled",
    "work.after_chunk_settled",
    "work.before_merge",
    "work.before_artifact_stored",
    "work.after_artifact_stored",
    "work.before_settle",
    "states.before_finish_commit",
    "work.after_settle",
    "work.after_results_deleted",
    "delivery.before_send",
    "delivery.after_send",
    "delivery.after_noted",
    "retention.before_mark",
    "retention.after_mark",
    "retention.after_manifests_deleted",
    "retention.before_artifacts_deleted",
    "retention.after_artifacts_deleted",
    "retention.after_artifacts_noted",
    "retention.before_batches_deleted",
    "retention.after_batches_deleted",
    "retention.before_workflows_deleted",
    "retention.after_workflows_deleted",
)
"""Where the embedded router may die, in the order of a batch."""

KILL_POINTS: Final[tuple[str, ...]] = (
    *RUN_KILL_POINTS,
    *RECEIVER_KILL_POINTS,
    *ROUTER_KILL_POINTS,
)
