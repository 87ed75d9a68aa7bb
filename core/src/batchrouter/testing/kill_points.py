"""The names of all kill points, so that a drill can go through every one of them.

`batchrouter.killpoints` says how they work. A test reads every ``reached("…")`` in the source
and fails when a name is missing here, or stands here and is reached nowhere.
"""

from typing import Final

_JOURNALED = (
    "opened",
    "claimed",
    "generation_opened",
    "built",
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
)
"""The types of a journal's events; each is written between two points."""

RUN_KILL_POINTS: Final[tuple[str, ...]] = (
    *(f"journal.{when}_{event}" for event in _JOURNALED for when in ("before", "after")),
    "build.before",
    "build.after",
    "upload.before_send",
    "upload.after_send",
    "submit.before_send",
    "submit.after_send",
    "cancel.before_send",
    "cancel.after_send",
    "download.before",
    "download.during",
    "download.after",
)
"""Where a process that carries on a run may die."""

ROUTER_KILL_POINTS: Final[tuple[str, ...]] = (
    "quotes.before_commit",
    "quotes.after_commit",
    "objects.before_commit",
    "objects.after_commit",
    "states.before_finish_commit",
    "delivery.before_send",
    "delivery.after_send",
    "delivery.after_noted",
)
"""Where the embedded router may die."""

KILL_POINTS: Final[tuple[str, ...]] = (*RUN_KILL_POINTS, *ROUTER_KILL_POINTS)
