"""From a body to the output's columns: text, an object of a schema, or a vector.

A reader knows its columns before the first row, reads one body at a time, and makes arrays out
of what it read; it raises `UnusableError` for a body that is not what the job asked for, and
repairs nothing: JSON inside a Markdown fence is no JSON.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from batchrouter.landing.bodies import Heard, UnusableError, Vector, object_of, text_of, vector_of
from batchrouter.landing.schema import CompiledSchema, Typed, compile_schema, plain

PLAIN_OUTPUT = "output"

Read = tuple[Any, bool]
"""A value for the output's columns, and whether the output cap cut it."""

_UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RequestToLand(Protocol):
    """What landing needs to know of a job's request."""

    @property
    def kind(self) -> str:
        """`chat`, `embedding`, `workflow` or `raw`."""
        ...

    def output_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer, None for text and vectors."""
        ...


class OutputReader(Protocol):
    """One kind of output: its columns, and how a body fills them."""

    @property
    def fields(self) -> list["pa.Field[Any]"]:
        """The output's columns in their order."""
        ...

    @property
    def hears_text(self) -> bool:
        """Every body is a model's, and its text is what counts."""
        ...

    def read(self, body: msgspec.Raw) -> Read:
        """Read one body, or raise `UnusableError`."""
        ...

    def read_text(self, text: str) -> Any:
        """Read a body's whole text, where text is heard, or raise `UnusableError`."""
        ...

    def arrays(self, values: Sequence[Any]) -> list["pa.Array[Any]"]:
        """Make the columns; None stands for a row without an output."""
        ...


def open_reader(
    request: RequestToLand, *, operation: str | None, vector_size: int | None
) -> OutputReader:
    """Choose the reader for a job's request.

    Args:
        request: The job's request.
        operation: The job's operation; `embeddings` answers vectors.
        vector_size: How many numbers a vector has; None when no row tells.

    Raises:
        ValueError: The output schema gives no columns.
    """
    if operation == "embeddings" or request.kind == "embedding":
        return VectorReader(vector_size)
    hear = object_of if request.kind == "workflow" else text_of
    schema = request.output_schema()
    return TextReader(hear) if schema is None else ObjectReader(compile_schema(schema), hear)


class TextReader:
    """The answer as it stands, in one string column."""

    def __init__(self, hear: Callable[[msgspec.Raw], Heard] = text_of) -> None:
        self._hear = hear
        self.hears_text = hear is text_of
        self.fields = [pa.field(PLAIN_OUTPUT, pa.string())]

    def read(self, body: msgspec.Raw) -> Read:
        """Read the text; an empty one is an answer too."""
        return self._hear(body)

    def read_text(self, text: str) -> str:
        """Take the text as it stands."""
        return text

    def arrays(self, values: Sequence[Any]) -> list["pa.Array[Any]"]:
        """Make the one column."""
        return [pa.array(values, pa.string())]


class ObjectReader:
    """The answer as JSON of a schema, one column a property."""

    def __init__(
        self, compiled: CompiledSchema, hear: Callable[[msgspec.Raw], Heard] = text_of
    ) -> None:
        self._hear = hear
        self.hears_text = hear is text_of
        self._columns = compiled.columns
        self._decode = compiled.decoder.decode
        self.fields = [pa.field(each.name, each.typed.arrow) for each in compiled.columns]

    def read(self, body: msgspec.Raw) -> Read:
        """Read the object; the message of a failure has the path of the first error."""
        text, is_cut = self._hear(body)
        try:
            return self._decode(text), False
        except _UNPARSABLE as error:
            raise _misfit(error, text, is_cut=is_cut) from None

    def read_text(self, text: str) -> Any:
        """Read the object; the message of a failure has the path of the first error."""
        try:
            return self._decode(text)
        except _UNPARSABLE as error:
            raise _misfit(error, text, is_cut=False) from None

    def arrays(self, values: Sequence[Any]) -> list["pa.Array[Any]"]:
        """Make a column of each property."""
        there = [each for each in values if each is not None]
        columns = [_column(each.typed, each.attribute, there) for each in self._columns]
        if len(there) == len(values):
            return columns
        is_there = np.fromiter((each is not None for each in values), np.bool_, len(values))
        places = pa.array(np.cumsum(is_there) - 1, pa.int64(), mask=~is_there)
        return [column.take(places) for column in columns]


def _column(typed: Typed, attribute: str, values: Sequence[Any]) -> "pa.Array[Any]":
    held = list(map(attrgetter(attribute), values))
    return pa.array(plain(held) if typed.is_nested else held, typed.arrow)


def _misfit(error: Exception, text: str, *, is_cut: bool) -> UnusableError:
    if isinstance(error, RecursionError):
        return UnusableError("output_not_in_schema", "nested too deeply - at `$`", text)
    told = str(error)
    if is_cut:
        return UnusableError("output_truncated", f"cut at the output cap: {told}", text)
    if isinstance(error, msgspec.ValidationError):
        path = "" if " - at `" in told else " - at `$`"
        return UnusableError("output_not_in_schema", f"{told}{path}", text)
    if text.lstrip().startswith("```"):
        told = f"{told} (the answer is fenced in Markdown)"
    return UnusableError("output_not_json", told, text)


class UnreadOutput:
    """No output at all, where only failures are looked for."""

    def __init__(self) -> None:
        self.fields: list[pa.Field[Any]] = []
        self.hears_text = False

    def read(self, body: msgspec.Raw) -> Read:
        """Leave the body alone."""
        del body
        return None, False

    def read_text(self, text: str) -> None:
        """Leave the text alone."""
        del text

    def arrays(self, values: Sequence[Any]) -> list["pa.Array[Any]"]:
        """Make no column."""
        del values
        return []


class VectorReader:
    """The answer as a vector of float32, of one size in the whole table."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self.hears_text = False
        many = pa.list_(pa.float32()) if size is None else pa.list_(pa.float32(), size)
        self.fields = [pa.field(PLAIN_OUTPUT, many)]

    def read(self, body: msgspec.Raw) -> Read:
        """Read the vector, which must have the table's size."""
        vector = vector_of(body)
        if len(vector) != self._size:
            told = f"the vector has {len(vector)} numbers, the table's have {self._size}"
            raise UnusableError("embedding_size", told, bytes(body).decode(errors="replace"))
        return vector, False

    def read_text(self, text: str) -> Any:
        """Refuse: no text is a vector."""
        raise UnusableError("no_output", "the body holds no vector", text)

    def arrays(self, values: Sequence[Vector | None]) -> list["pa.Array[Any]"]:
        """Make the one column, without a Python object a number."""
        if self._size is None:
            return [pa.nulls(len(values), self.fields[0].type)]
        blank = np.zeros(self._size, dtype=np.float32)
        flat = np.concatenate([blank if each is None else each for each in values] or [blank[:0]])
        is_null = pa.array([each is None for each in values], pa.bool_())
        return [pa.FixedSizeListArray.from_arrays(pa.array(flat), self._size, mask=is_null)]
