"""Where the requests may go: the acceptable models or the workflow, and the limits to routing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from batchrouter.job.part import JobPart


def _as_tuple(value: Any) -> Any:
    """Take one name for a list of one, and a list for a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)]


class Route(JobPart):
    """Either a set of acceptable models or a curated workflow, never both.

    Example:
        >>> Route(models=["gpt-4o-mini"]).allowed_regions
        ('global',)
    """

    models: Names = Field((), description="the acceptable models")
    workflow: Name | None = Field(None, description="a workflow, such as classify@v3")
    routing_mode: Name = "cheapest"
    privacy_tier: Literal["standard", "restricted", "zdr"] = "standard"
    allowed_regions: Names = Field(("global",), min_length=1)
    sla_tier: Literal["standard", "flex"] | None = None
    allow_split: bool | None = None

    if TYPE_CHECKING:  # one name may be given as text

        def __init__(
            self,
            *,
            models: str | Sequence[str] = ...,
            workflow: str | None = ...,
            routing_mode: str = ...,
            privacy_tier: Literal["standard", "restricted", "zdr"] = ...,
            allowed_regions: str | Sequence[str] = ...,
            sla_tier: Literal["standard", "flex"] | None = ...,
            allow_split: bool | None = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _one_way(self) -> "Route":
        if self.models and self.workflow:
            raise ValueError("names models and a workflow; keep one of the two")
        if not self.models and not self.workflow:
            raise ValueError("names neither models nor a workflow; give one of the two")
        twice = {name for name in self.models if self.models.count(name) > 1}
        if twice:
            raise ValueError(f".models: {min(twice)!r} stands twice; keep one")
        return self
