"""A job's request → the shape of a manifest line, and the shape → constants and slots.

A line is native (contract section 4): `customer_item_id` first, then `operation` and `input`; a
workflow's line has no operation. What stands in no job stands in no line, so that the request's
hash does not change when a default does.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchrouter.job import Chat, Embedding, Job, Raw, Workflow
from batchrouter.job.schemas import is_strict
from batchrouter.job.templates import Placeholder, Template

ITEM_ID_LENGTH = 26
LINE_HEAD = '{"customer_item_id":"'
REQUEST_START = len(LINE_HEAD) + ITEM_ID_LENGTH + len('"')
"""The byte of a line at which the request begins: all before it is the item's id."""

OUTPUT_NAME = "output"
"""What the answer's schema is called on the wire; constant, so that a renamed job buys nothing."""


@dataclass(frozen=True, slots=True)
class ItemId:
    """The slot of the item's id."""


@dataclass(frozen=True, slots=True)
class JsonColumn:
    """The slot of a column whose text is a JSON object, written without quotes."""

    column: str


Slot = ItemId | JsonColumn | Placeholder
Shape = Any
"""JSON with `Template` and `Slot` as leaves."""


def line_shape(job: Job) -> dict[str, Shape]:
    """Lay a line out, with templates and slots where a row's values go."""
    operation = {"operation": job.operation} if job.operation else {}
    return {"customer_item_id": ItemId(), **operation, "input": _input_shape(job)}


def _input_shape(job: Job) -> Shape:
    request = job.request
    if isinstance(request, Chat):
        system = [] if request.system is None else [{"role": "system", "content": request.system}]
        messages = [*system, {"role": "user", "content": request.user}]
        return {"messages": messages, **request.parameters, **_response_format(request)}
    if isinstance(request, Embedding):
        return {"input": request.input, **request.parameters}
    if isinstance(request, Workflow):
        return _with_templates(request.input)
    return _raw_shape(request)


def _response_format(request: Chat) -> dict[str, Any]:
    schema = request.output_schema()
    if schema is None:
        return {}
    named = {"name": OUTPUT_NAME, "strict": is_strict(schema), "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _raw_shape(request: Raw) -> Shape:
    return JsonColumn(request.column) if request.column else _with_templates(request.body)


def _with_templates(value: Any) -> Shape:
    if isinstance(value, str):
        return Template(value)
    if isinstance(value, Mapping):
        return {name: _with_templates(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_templates(item) for item in value]
    return value


def pieces(shape: Shape) -> list[str | Slot]:
    """Cut a shape's JSON into constant texts and slots; neighbouring constants are one.

    Example:
        >>> pieces({"customer_item_id": ItemId(), "input": Template("a {b}")})
        ['{"customer_item_id":"', ItemId(), '","input":"a ', Placeholder(path=('b',)), '"}']
    """
    merged: list[str | Slot] = []
    for piece in _walk(shape):
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def to_json(value: Any) -> str:
    """Write JSON as every line is written: compact, not escaped beyond need, no NaN."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _walk(shape: Shape) -> Iterator[str | Slot]:
    if isinstance(shape, Template):
        yield '"'
        for part in shape.parts:
            yield to_json(part)[1:-1] if isinstance(part, str) else part
        yield '"'
    elif isinstance(shape, ItemId):
        yield from ('"', shape, '"')
    elif isinstance(shape, JsonColumn):
        yield shape
    elif isinstance(shape, dict):
        for index, (name, item) in enumerate(shape.items()):
            yield f"{',' if index else '{'}{to_json(name)}:"
            yield from _walk(item)
        yield "}" if shape else "{}"
    elif isinstance(shape, list):
        for index, item in enumerate(shape):
            yield "," if index else "["
            yield from _walk(item)
        yield "]" if shape else "[]"
    else:
        yield to_json(shape)


def slots(shape: Shape) -> list[Slot]:
    """Give the distinct slots of a shape, in order of first use."""
    return list(dict.fromkeys(piece for piece in pieces(shape) if not isinstance(piece, str)))
