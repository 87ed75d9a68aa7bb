"""One line of `doctor`: what was found, how bad it is, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from batchrouter.cli.failures import advice_for, code_of
from batchrouter.errors import BatchrouterError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        told: What was found.
        advice: What to do about it, unless it is well.
        exit_code: What the command exits with when this is the first failure.
    """

    level: Level
    subject: str
    told: str
    advice: str | None = None
    exit_code: int = 2

    def to_dict(self) -> dict[str, Any]:
        """Turn it into JSON's types."""
        return asdict(self)


def failure(subject: str, error: BatchrouterError, advice: str | None = None) -> Finding:
    """Turn an error into a finding."""
    return Finding("fail", subject, str(error), advice or advice_for(error), code_of(error))
