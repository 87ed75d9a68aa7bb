"""How long a run's folder keeps its files, once nothing of the run is open any more."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field, model_validator

from batchrouter.job.part import JobPart

UNTIL_LANDED: Final = "until_landed"

_DURATION = re.compile(r"0*([1-9][0-9]{0,5})([mhdw])", re.ASCII)
_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_MOST = timedelta(days=36_500)


def parse_duration(text: str) -> timedelta:
    """Read a duration: a whole number and its unit, m, h, d or w.

    Raises:
        ValueError: It is none, or is over 100 years; the message is a sentence about it.

    Example:
        >>> parse_duration("7d"), parse_duration("90m")
        (datetime.timedelta(days=7), datetime.timedelta(seconds=5400))
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("must be a duration such as 90m, 12h, 7d or 4w")
    duration = int(found[1]) * _UNITS[found[2]]
    if duration > _MOST:
        raise ValueError("must be at most 36500d")
    return duration


def _checked(given: Any) -> Any:
    if given is None:
        return None
    if not isinstance(given, str):
        raise ValueError("must be a duration with its unit, such as 12h, 7d or 4w")  # noqa: TRY004 - pydantic's way
    parse_duration(given)
    return given


def _checked_or_landed(given: Any) -> Any:
    if given == UNTIL_LANDED:
        return given
    try:
        return _checked(given)
    except ValueError as error:
        raise ValueError(f"{error}, or {UNTIL_LANDED}") from None


def _checked_journal(given: Any) -> Any:
    if given == UNTIL_LANDED:
        raise ValueError(
            "must be a duration such as 400d: the journal is what knows that a run was bought"
        )
    return _checked(given)


_Kept = Annotated[str | None, BeforeValidator(_checked_or_landed)]


class Retain(JobPart):
    """How long each part of a run's folder is kept; what is not named stays.

    The time counts from the last landing. The artifact takes its rejected lines with it; the
    journal takes the whole folder.

    Example:
        >>> Retain(manifest="until_landed", artifact="7d").after("artifact")
        datetime.timedelta(days=7)
    """

    manifest: _Kept = Field(None, description="the requests: a duration, or until_landed")
    artifact: _Kept = Field(None, description="the results: a duration, or until_landed")
    journal: Annotated[str | None, BeforeValidator(_checked_journal)] = Field(
        None, description="the whole run folder: a duration"
    )

    if TYPE_CHECKING:  # every field has its default

        def __init__(
            self,
            *,
            manifest: str | None = ...,
            artifact: str | None = ...,
            journal: str | None = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _journal_goes_last(self) -> "Retain":
        whole = self.after("journal")
        for name in ("manifest", "artifact"):
            kept = self.after(name)
            if whole is not None and kept is not None and kept > whole:
                raise ValueError(
                    f".{name}: {getattr(self, name)} is longer than the journal's {self.journal}, "
                    "with which the whole folder goes"
                )
        return self

    def after(self, name: str) -> timedelta | None:
        """How long after the landing a part goes; None when it stays."""
        kept: str | None = getattr(self, name)
        if kept is None:
            return None
        return timedelta(0) if kept == UNTIL_LANDED else parse_duration(kept)
