"""A workflow's prompt: the fields of a line's input become a chat request.

The schema of the output goes with it. Where a line brings its own labels (`enum_from`), they
take the place of the schema's enum; the schema is written once for each set of labels.
"""

import json
import re
from typing import Any

import msgspec

from batchrouter.server.config import WorkflowConfig

__all__ = ["WorkflowPrompt"]

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MAX_SCHEMAS = 256
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class WorkflowPrompt:
    """Renders the lines of one workflow.

    Example:
        >>> from batchrouter.server.config import load_config
        >>> prompt = WorkflowPrompt(load_config().workflow("classify-support-tickets"))
        >>> b"card is lost" in prompt.render(b'{"body": "My card is lost"}')
        True
    """

    def __init__(self, workflow: WorkflowConfig) -> None:
        self._workflow = workflow
        declared = {field.name for field in workflow.fields}
        # Text and field names by turns; a name that is no field is text that holds braces.
        self._parts: list[tuple[str, bool]] = []
        for nth, part in enumerate(_FIELD.split(workflow.user)):
            is_field = nth % 2 == 1
            if is_field and part not in declared:
                self._parts.append((f"{{{part}}}", False))
            else:
                self._parts.append((part, is_field))
        system = [{"role": "system", "content": workflow.system}] if workflow.system else []
        self._head = b'{"messages":[%b{"role":"user","content":' % (
            _encode(system[0]) + b"," if system else b""
        )
        self._parameters = b"".join(
            b",%b:%b" % (_encode(name), json.dumps(value, default=float).encode())
            for name, value in workflow.parameters.items()
        )
        self._label_fields = tuple(dict.fromkeys(workflow.enum_from.values()))
        self._schemas: dict[tuple[bytes, ...], bytes] = {}

    def render(self, fields_json: bytes) -> bytes:
        """Write the chat request of one line's ``input``.

        Raises:
            msgspec.DecodeError: The input is no object.
        """
        fields = _decode_fields(fields_json)
        text = "".join(
            _text(fields.get(part)) if is_field else part for part, is_field in self._parts
        )
        labels = tuple(bytes(fields.get(name, b"")) for name in self._label_fields)
        return b'%b%b}],"response_format":%b%b}' % (
            self._head,
            _encode(text),
            self._schema(labels),
            self._parameters,
        )

    def _schema(self, labels: tuple[bytes, ...]) -> bytes:
        found = self._schemas.get(labels)
        if found is None:
            if len(self._schemas) >= _MAX_SCHEMAS:
                self._schemas.clear()
            found = self._schemas[labels] = self._write_schema(labels)
        return found

    def _write_schema(self, labels: tuple[bytes, ...]) -> bytes:
        given = dict(zip(self._label_fields, labels, strict=True))
        schema: dict[str, Any] = json.loads(json.dumps(self._workflow.output_schema, default=float))
        for output, field in self._workflow.enum_from.items():
            if given[field]:
                schema["properties"][output]["enum"] = _decode_any(given[field])
        asked = {
            "name": self._workflow.slug.replace("-", "_"),
            "strict": True,
            "schema": schema,
        }
        return _encode({"type": "json_schema", "json_schema": asked})


def _text(value: msgspec.Raw | None) -> str:
    if value is None:
        return ""
    read = _decode_any(value)
    if isinstance(read, list):
        return ", ".join(str(one) for one in read)
    return read if isinstance(read, str) else bytes(value).decode()
