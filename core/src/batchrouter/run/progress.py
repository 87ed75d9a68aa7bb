"""What a run tells whoever watches it: one small value, many times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["build", "quote", "upload", "submit", "wait", "download", "land"]
Unit = Literal["rows", "bytes", "items", "parts"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage is.

    Attributes:
        stage: The step of the run.
        done: Finished units of this stage, over all parts.
        total: All units of this stage; None while unknown.
        unit: What is counted.
        detail: A few words for a person, such as a batch's id and state.
    """

    stage: Stage
    done: int
    total: int | None
    unit: Unit
    detail: str = ""


ProgressListener = Callable[[Progress], None]


def nobody_listens(_progress: Progress) -> None:
    """Take progress and drop it."""
