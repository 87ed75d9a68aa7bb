"""A manifest comes in: checked line by line while it streams to the store.

Blocks are pushed in as they arrive and go on to the object at once; nothing is read twice.
What later steps must know of the file (create reads no file again) is counted on the way.
When a line is bad the rest is still checked, so that the caller is told of every kind of
problem at once, but nothing is kept.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from batchrouter.errors import APIError
from batchrouter.server.batches.lines import Line, LineError, read_line
from batchrouter.server.batches.seen_ids import SeenIds
from batchrouter.server.config import Limits
from batchrouter.server.quoting.terms import BYTES_PER_TOKEN
from batchrouter.server.refusals import refusal
from batchrouter.server.storage.objects import Objects

__all__ = ["Intake", "ManifestFacts"]

_SHOWN_ISSUES = 20
_MAX_FIELDS = 64
_MAX_MODELS = 64
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What is known of a manifest once it is stored.

    Attributes:
        operation: None for a workflow's lines.
        models: The models that lines ask for, sorted.
        fields: For a workflow's lines: per input field, how many lines have it and with
            which types (`string`, `string[]`, `other`).
        max_output_tokens: The largest cap that a line sets for itself.
    """

    object_key: str
    bytes: int
    item_count: int
    dialect: str
    operation: str | None
    models: list[str]
    fields: dict[str, Any]
    input_tokens_estimate: int
    max_output_tokens: int | None
    sha256: str


@dataclass(slots=True)
class _Tally:
    first: Line | None = None
    input_bytes: int = 0
    output_cap: int | None = None
    models: set[str] = field(default_factory=set[str])
    fields: Counter[str] = field(default_factory=Counter[str])
    types: dict[str, set[str]] = field(default_factory=dict[str, set[str]])


class Intake:
    """Takes one manifest in; leaves an object only if `finish` returns.

    Args:
        objects: Where the manifest goes.
        object_key: Its key.
        scratch: A folder for the ids of large manifests.
        limits: Sizes and counts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = Path(folder)
        ...     store = Objects.local(root / "objects")
        ...     with Intake(store, "manifests/f.jsonl", root / "scratch", Limits()) as intake:
        ...         intake.feed(b'{"customer_item_id":"a","operation":"embeddings",')
        ...         intake.feed(b'"input":{"input":"hi"}}')
        ...         facts = intake.finish()
        >>> facts.item_count, facts.dialect, facts.operation
        (1, 'native', 'embeddings')
    """

    def __init__(self, objects: Objects, object_key: str, scratch: Path, limits: Limits) -> None:
        self._key = object_key
        self._limits = limits
        self._writer = objects.open_writer(object_key)
        self._seen = SeenIds(scratch)
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._lines = 0
        self._rest = b""
        self._skipping = False
        self._tally = _Tally()
        self._issues: list[dict[str, Any]] = []
        self._issue_count = 0

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file, in blocks of any size.

        Raises:
            APIError: `request_too_large`, past `limits.manifest_bytes`.
            StoreFullError: The store has no room.
        """
        self._bytes += len(block)
        if self._bytes > self._limits.manifest_bytes:
            raise refusal(
                "request_too_large",
                f"the manifest is over {self._limits.manifest_bytes:,} bytes: split it",
                max_bytes=self._limits.manifest_bytes,
            )
        self._sha256.update(block)
        if not self._issue_count:
            self._writer.write(block)
        lines = block.split(b"\n")
        lines[0] = self._rest + lines[0]
        self._rest = lines.pop()
        for line in lines:
            self._take(line)
        if len(self._rest) > self._limits.manifest_line_bytes + 1:
            self._overlong()

    def finish(self) -> ManifestFacts:
        """Check what is left, and make the object durable.

        Raises:
            APIError: `invalid_manifest`, with the first issues and how many there are.
            StoreFullError: The store has no room.
        """
        if self._rest or self._skipping:
            # The last line needs no line end.
            self._take(self._rest)
        if self._lines == 0:
            self._issue(1, "empty_manifest", "the manifest has no lines")
        self._collect_late_duplicates()
        if self._issue_count:
            raise self._refusal()
        self._writer.commit()
        return self._facts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        self._seen.__exit__(kind, error, trace)

    def _take(self, raw: bytes) -> None:
        if self._skipping:
            # The end of a line that was refused for its length.
            self._skipping = False
            self._rest = b""
            return
        self._lines += 1
        number = self._lines
        if number > self._limits.manifest_lines:
            if number == self._limits.manifest_lines + 1:
                most = f"{self._limits.manifest_lines:,}"
                self._issue(number, "too_many_lines", f"a manifest may have {most} lines: split it")
            return
        if raw.endswith(b"\r"):
            raw = raw[:-1]
        if len(raw) > self._limits.manifest_line_bytes:
            self._too_long(number)
        elif number == 1 and raw.startswith(_BYTE_ORDER_MARK):
            self._issue(1, "byte_order_mark", "starts with a byte-order mark: save it without")
        elif not raw.strip():
            self._issue(number, "blank_line", "is blank")
        else:
            try:
                self._count(read_line(raw), number)
            except LineError as error:
                self._issue(number, error.code, str(error))

    def _count(self, line: Line, number: int) -> None:
        tally = self._tally
        first = tally.first
        if first is None:
            tally.first = first = line
        if line.dialect != first.dialect:
            raise LineError("mixed_dialects", f"is {line.dialect}, and line 1 is {first.dialect}")
        if line.endpoint != first.endpoint:
            raise LineError(
                "mixed_operations",
                f"is for {line.endpoint or 'a workflow'}, and the first line is for"
                f" {first.endpoint or 'a workflow'}",
            )
        seen_on = self._seen.add(line.item_id, number)
        if seen_on is not None:
            self._duplicate(number, seen_on, line.item_id)
        tally.input_bytes += line.input_bytes
        if line.output_cap is not None and line.output_cap > (tally.output_cap or 0):
            tally.output_cap = line.output_cap
        if line.model is not None and line.model not in tally.models:
            if len(tally.models) >= _MAX_MODELS:
                raise LineError("too_many_models", f"is the {_MAX_MODELS + 1}th model of the file")
            tally.models.add(line.model)
        if line.operation is None:
            self._count_fields(line.input)

    def _count_fields(self, fields: dict[str, Any]) -> None:
        tally = self._tally
        for name, value in fields.items():
            if name not in tally.types:
                if len(tally.types) >= _MAX_FIELDS:
                    raise LineError(
                        "too_many_fields", f"input: over {_MAX_FIELDS} different fields"
                    )
                tally.types[name] = set()
            tally.fields[name] += 1
            tally.types[name].add(_type_of(value))

    def _overlong(self) -> None:
        """Forget a line that has no end yet and is too long already."""
        if not self._skipping:
            self._lines += 1
            self._too_long(self._lines)
            self._skipping = True
        self._rest = b""

    def _too_long(self, number: int) -> None:
        most = f"{self._limits.manifest_line_bytes:,}"
        self._issue(number, "line_too_long", f"is over {most} bytes")

    def _duplicate(self, number: int, first: int, item_id: str) -> None:
        self._issue(
            number,
            "duplicate_item_id",
            f"{item_id!r} stands on line {first} and on line {number}",
            first_line=first,
        )

    def _collect_late_duplicates(self) -> None:
        late = self._seen.late_duplicates(_SHOWN_ISSUES)
        shown = self._issues
        self._issues = []
        before = self._issue_count
        for number, first, item_id in late:
            self._duplicate(number, first, item_id)
        self._issue_count = before + self._seen.late_count
        self._issues = sorted([*shown, *self._issues], key=lambda issue: cast("int", issue["line"]))

    def _issue(self, line: int, code: str, message: str, **more: Any) -> None:
        self._issue_count += 1
        if len(self._issues) < _SHOWN_ISSUES:
            self._issues.append({"line": line, "code": code, "message": message, **more})

    def _refusal(self) -> APIError:
        shown = self._issues[:_SHOWN_ISSUES]
        first = shown[0]
        others = f" (and {self._issue_count - 1} more)" if self._issue_count > 1 else ""
        return refusal(
            "invalid_manifest",
            f"line {first['line']}: {first['message']}{others}; nothing was kept",
            issues=shown,
            issue_count=self._issue_count,
        )

    def _facts(self) -> ManifestFacts:
        tally = self._tally
        assert tally.first is not None
        return ManifestFacts(
            object_key=self._key,
            bytes=self._bytes,
            item_count=self._lines,
            dialect=tally.first.dialect,
            operation=tally.first.operation,
            models=sorted(tally.models),
            fields={
                name: {"count": count, "types": sorted(tally.types[name])}
                for name, count in tally.fields.items()
            },
            input_tokens_estimate=-(-tally.input_bytes // BYTES_PER_TOKEN),
            max_output_tokens=tally.output_cap,
            sha256=self._sha256.hexdigest(),
        )


def _type_of(value: Any) -> str:
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        if entries and all(isinstance(entry, str) for entry in entries):
            return "string[]"
    return "other"
