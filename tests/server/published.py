"""The request types in the packages `openai` and `anthropic`, read as strictly as a server may.

The packages generate them from the providers' own API descriptions, for type checkers, and pydantic
reads them leniently: it passes over unknown members, checks an `Iterable` only when somebody
iterates, and turns texts into numbers. Here nothing of a request is left unread.
"""

from functools import cache
from typing import Any, Required, get_type_hints

from openai.types.file_create_params import FileCreateParams
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator
from typing_extensions import TypedDict


def accept(kind: Any, request: bytes) -> None:
    """Read a JSON body by a published type.

    Raises:
        ValidationError: It is not such a request, or has members that the type does not know.
    """
    _strict(kind).validate_json(request, strict=True)


def accept_upload(form: dict[str, bytes]) -> None:
    """Read the fields of a form as OpenAI's upload of a file.

    Raises:
        ValidationError: As `accept`.
    """
    fields = {name: told if name == "file" else told.decode() for name, told in form.items()}
    _strict(_Upload).validate_python(fields, strict=True)


# The package takes a path or an open file, too; on the wire it is bytes.
_Upload = TypedDict(
    "_Upload",
    {**get_type_hints(FileCreateParams, include_extras=True), "file": Required[bytes]},
    total=False,
)


@cache
def _strict(kind: Any) -> SchemaValidator:
    return SchemaValidator(_closed(TypeAdapter(kind).core_schema))


def _closed(schema: Any) -> Any:
    """Forbid unknown members at every depth, and read what would be read lazily."""
    if isinstance(schema, list | tuple):
        return type(schema)(_closed(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(told) for name, told in schema.items()}
    match closed.get("type"):
        case "typed-dict" | "model-fields":
            closed["extra_behavior"] = "forbid"
        case "generator":
            closed["type"] = "list"
    return closed
