"""What a build made: parts, counts and hashes, as plain values that the journal can hold."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

BYTES_PER_INPUT_TOKEN = 3
"""Bytes of a line for one input token: conservative on purpose, since a quote must cover it.

English has about 4.5 bytes a token, Cyrillic 4, CJK 3 (public tokenizers, o200k and later); the
line's JSON around the text counts, too.
"""


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """One manifest and its row snapshot.

    Attributes:
        index: The part's number from 0.
        manifest_path: The manifest's file name inside the manifest folder.
        rows_path: The snapshot's file name inside the rows folder.
        item_count: Lines of the manifest; 0 when every row was skipped or there was none.
        row_count: Rows of the snapshot: items, skipped and repeated rows.
        skipped_count: Rows that were not sent, since a NULL stands where a value must.
        repeated_count: Rows that repeat the request of an earlier one, and take its answer.
        bytes: Size of the manifest.
        sha256: Of the manifest, hex.
        input_tokens_estimate: Mean per item, rounded up, times the items.
    """

    index: int
    manifest_path: str
    rows_path: str
    item_count: int
    row_count: int
    skipped_count: int
    bytes: int
    sha256: str
    input_tokens_estimate: int
    repeated_count: int = 0


@dataclass(frozen=True, slots=True)
class BuiltManifest:
    """All parts of one build; at least one.

    Attributes:
        parts: In the order of the source.
        row_count: Rows of the snapshots: items, skipped and repeated rows.
        item_count: Requests.
        skipped_count: Rows that `on_null: skip` left out.
        repeated_count: Rows that `dedupe` spared a request.
        unchanged_count: Rows that stand in no part, since the table holds them already.
        max_output_tokens: The largest output cap that a request states, None when none does.
        duration_s: Wall time of the build.
    """

    parts: tuple[BuiltPart, ...]
    row_count: int
    item_count: int
    skipped_count: int
    max_output_tokens: int | None
    duration_s: float
    repeated_count: int = 0
    unchanged_count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Write it as JSON-safe values."""
        return {**asdict(self), "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        parts = tuple(BuiltPart(**part) for part in data["parts"])
        fields: dict[str, Any] = {**data, "parts": parts}
        return cls(**fields)


def tokens_estimate(size_bytes: int, item_count: int) -> int:
    """Estimate the input tokens of a part.

    Example:
        >>> tokens_estimate(1000, 10)
        340
    """
    if not item_count:
        return 0
    return -(-size_bytes // (BYTES_PER_INPUT_TOKEN * item_count)) * item_count
