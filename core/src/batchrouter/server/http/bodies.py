"""JSON bodies: bounded while they are read, parsed exactly, checked against a model."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from batchrouter.server import strict_json
from batchrouter.server.refusals import refusal
from batchrouter.server.strict_json import StrictJsonError

__all__ = ["documented", "parse", "read_body", "refuse_encodings"]

Model = TypeVar("Model", bound=BaseModel)

_SHOWN_PROBLEMS = 20
#: Far more than any field of a request may have, `items` aside (which stop at the first wrong
#: one): a million wrong ones would each be described in memory before the first is told.
_MAX_MEMBERS = 1_000


def refuse_encodings(request: Request) -> None:
    """See that a body comes as it is.

    Raises:
        APIError: `unsupported_content_encoding`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise refusal(
            "unsupported_content_encoding",
            f"Content-Encoding {encoding} is not accepted: send the body as it is",
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body that may have so many bytes; no more are ever held.

    Raises:
        APIError: `request_too_large`, `unsupported_content_encoding`.
    """
    refuse_encodings(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    blocks: list[bytes] = []
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > max_bytes:
            raise _too_large(max_bytes)
        blocks.append(block)
    return b"".join(blocks)


def parse(model: type[Model], body: bytes) -> tuple[Model, Mapping[str, Any]]:
    """Parse a body and check it; returns the model, and the object as it was sent.

    Raises:
        APIError: `invalid_request`, its message `<path>: <problem>`.
    """
    try:
        data = strict_json.loads(body)
    except StrictJsonError as error:
        raise refusal("invalid_request", f"body: {error}") from None
    if not isinstance(data, dict):
        raise refusal("invalid_request", "body: must be a JSON object")
    _refuse_crowds(data)
    try:
        return model.model_validate(data), data
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        problems = [
            {"path": _path(item["loc"]), "problem": item["msg"].removeprefix("Value error, ")}
            for item in found[:_SHOWN_PROBLEMS]
        ]
        first = problems[0]
        raise refusal(
            "invalid_request", f"{first['path']}: {first['problem']}", problems=problems
        ) from None


def _refuse_crowds(data: Mapping[str, Any]) -> None:
    crowded = [name for name, value in data.items() if name != "items" and _is_crowd(value)]
    if crowded or _is_crowd(data):
        raise refusal(
            "invalid_request", f"{crowded[0] if crowded else 'body'}: over {_MAX_MEMBERS:,} members"
        )


def _is_crowd(value: Any) -> bool:
    return isinstance(value, dict | list) and len(value) > _MAX_MEMBERS


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body for OpenAPI, since the route reads it itself."""
    schema = model.model_json_schema()
    shared = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, shared)}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, shared: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, shared) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(shared[schema["$ref"].rsplit("/", 1)[-1]], shared)
    return {name: _inlined(item, shared) for name, item in schema.items()}


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.lstrip(".") or "body"


def _too_large(max_bytes: int) -> Exception:
    return refusal(
        "request_too_large",
        f"the body is over {max_bytes:,} bytes: upload a manifest in place of items",
        max_bytes=max_bytes,
    )
