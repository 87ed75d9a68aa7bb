"""The base of a job and of its parts: frozen, strict about unknown fields, one kind of error."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from batchrouter.job.problems import job_error, problems_in


class JobPart(BaseModel):
    """A frozen model that raises `JobError` with every problem when it is made directly."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=False,
        ser_json_inf_nan="strings",
        hide_input_in_errors=True,
    )

    if not TYPE_CHECKING:  # type checkers see the fields, which pydantic's decorator declares

        def __init__(self, /, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                problems = problems_in(error, type(self))
                raise job_error(problems, origin=type(self).__name__) from None

        # Without this mark pydantic would call the method above for a nested part, and the
        # path of the problem would end at the part.
        __init__.__pydantic_base_init__ = True
