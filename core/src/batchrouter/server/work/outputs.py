"""What an artifact line's `output` is: the provider's body, or a workflow's own object."""

from collections.abc import Callable

import msgspec

__all__ = ["output_writer"]


class _Message(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message


class _Chat(msgspec.Struct, gc=False):
    choices: list[_Choice]


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def output_writer(*, is_workflow: bool) -> Callable[[bytes], bytes]:
    r"""Return what turns a provider's body into an output; it raises ValueError when it cannot.

    Example:
        >>> body = b'{"choices": [{"message": {"content": "{\\"intent\\": \\"bug\\"}"}}]}'
        >>> output_writer(is_workflow=True)(body)
        b'{"intent": "bug"}'
    """
    return _workflow_output if is_workflow else _unchanged


def _unchanged(body: bytes) -> bytes:
    return body


def _workflow_output(body: bytes) -> bytes:
    try:
        content = _decode_chat(body).choices[0].message.content or ""
        _decode_object(content)
    except (msgspec.DecodeError, IndexError):
        raise ValueError(
            "the model's answer is not the object that the workflow promises"
        ) from None
    return content.encode()
