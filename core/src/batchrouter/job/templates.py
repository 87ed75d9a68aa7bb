r"""Prompt templates: `{column}` and `{column.field}` are placeholders, every other brace is text.

Prompts hold JSON, so a brace means something only around an identifier. `\{name}` is the text
`{name}`; a doubled backslash before a placeholder is one backslash.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from batchrouter.job.problems import name_of_type

_PLACEHOLDER = re.compile(r"(\\*)\{([^\W\d]\w*(?:\.[^\W\d]\w*)*)\}")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A column, or a field inside a struct column: `("meta", "city")` for `{meta.city}`."""

    path: tuple[str, ...]

    @property
    def column(self) -> str:
        """The column of the source that is read."""
        return self.path[0]

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Template:
    r"""A parsed template; `text` is what the job says.

    Example:
        >>> template = Template('{"id": {meta.id}, "raw": \\{body}}')
        >>> [str(p) for p in template.placeholders]
        ['meta.id']
        >>> template.render(lambda placeholder: "7")
        '{"id": 7, "raw": {body}}'
    """

    text: str

    @cached_property
    def parts(self) -> tuple[str | Placeholder, ...]:
        """Literal texts and placeholders in order; no text is empty."""
        found: list[str | Placeholder] = []
        literal, end = "", 0
        for match in _PLACEHOLDER.finditer(self.text):
            slashes, path = match.groups()
            literal += self.text[end : match.start()] + "\\" * (len(slashes) // 2)
            end = match.end()
            if len(slashes) % 2:
                literal += f"{{{path}}}"
                continue
            if literal:
                found.append(literal)
            found.append(Placeholder(tuple(path.split("."))))
            literal = ""
        literal += self.text[end:]
        return (*found, literal) if literal else tuple(found)

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """The distinct placeholders, in order of first use."""
        return tuple(dict.fromkeys(part for part in self.parts if isinstance(part, Placeholder)))

    def render(self, value_of: Callable[[Placeholder], str]) -> str:
        """Fill the template with the texts that `value_of` gives."""
        return "".join(part if isinstance(part, str) else value_of(part) for part in self.parts)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.checked, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def checked(cls, given: object) -> "Template":
        """Parse a job's text.

        Raises:
            ValueError: It is no text, or holds `${params.…}`, which has no meaning here.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str):
            raise ValueError(f"must be text, not {name_of_type(given)}; put it in quotes")  # noqa: TRY004 - pydantic turns only ValueError into a field's problem
        if "${params." in given:
            raise ValueError(
                "${params.…} works in source and sink only; carry the value in a column"
            )
        if not given.isascii() and given.encode(errors="ignore").decode() != given:
            raise ValueError("holds half of a surrogate pair, which no UTF-8 text can")
        return cls(given)
