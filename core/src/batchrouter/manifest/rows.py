"""One batch of source rows → what its lines need: checked, keyed and rendered, NULLs decided."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.errors import ManifestError, NullKeyError
from batchrouter.job import Job
from batchrouter.job.templates import Placeholder
from batchrouter.manifest.arrow import Array, pc
from batchrouter.manifest.keys import codes, digests_of, typed_keys
from batchrouter.manifest.lines import ItemId, JsonColumn, Slot
from batchrouter.manifest.rendering import UnrenderableError, plain, rendered

_NAMED = 5


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """A batch, ready to be written.

    Attributes:
        first_row: The position of its first row in the source.
        carried: The key and kept columns, for the snapshot.
        digests: 16 bytes of each row's key hash.
        item_ids: For every row.
        sent: The rows that become items, ascending.
        slots: For each slot a text for each sent row.
        skip_reasons: For every row; NULL for those that are sent.
    """

    first_row: int
    carried: dict[str, Array]
    digests: bytes
    item_ids: Array
    sent: npt.NDArray[np.int64]
    slots: dict[Slot, Array]
    skip_reasons: Array


class RowPreparer:
    """Prepares batches for one job."""

    def __init__(self, job: Job, slots: Iterable[Slot]) -> None:
        self._key = job.key_columns
        self._keep = job.keep
        self._on_null = job.on_null
        self._slots = [slot for slot in dict.fromkeys(slots) if not isinstance(slot, ItemId)]
        self.columns = tuple(
            dict.fromkeys([*self._key, *self._keep, *(slot.column for slot in self._slots)])
        )
        """The columns to read from the source."""

    def prepare(self, batch: pa.RecordBatch, first_row: int) -> PreparedRows:
        """Check, key and render a batch.

        Raises:
            ManifestError: Invalid UTF-8, a value without a text, a NULL where `on_null: error`.
            NullKeyError: A key column holds NULL.
        """
        columns = {name: plain(self._valid(batch, name, first_row)) for name in self.columns}
        for name in self._key:
            self._refuse_null_key(columns[name], name, first_row)
        digests = digests_of(typed_keys(columns[name] for name in self._key))
        texts: dict[Slot, Array] = {
            slot: self._text(columns, slot, first_row) for slot in self._slots
        }
        texts, sent, reasons = self._without_nulls(texts, len(batch), first_row)
        item_ids = codes(digests)
        sent_ids = item_ids if len(sent) == len(batch) else item_ids.take(pa.array(sent))
        return PreparedRows(
            first_row=first_row,
            carried={name: columns[name] for name in dict.fromkeys([*self._key, *self._keep])},
            digests=digests,
            item_ids=item_ids,
            sent=sent,
            slots={ItemId(): sent_ids, **texts},
            skip_reasons=reasons,
        )

    def _valid(self, batch: pa.RecordBatch, name: str, first_row: int) -> Array:
        """Check the column fully: Arrow takes any bytes for text when it reads."""
        column = batch.column(name)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            row = _first_bad(column, lambda one: one.validate(full=True))
            problem = "is not UTF-8" if "UTF8" in str(error) else f"is damaged: {error}"
            raise ManifestError(
                f"column {name!r}, row {first_row + row} (from 0): {problem};"
                " repair the text in the source"
            ) from None
        return column

    def _refuse_null_key(self, column: Array, name: str, first_row: int) -> None:
        if not column.null_count:
            return
        nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        rows = ", ".join(str(first_row + int(row)) for row in nulls[:_NAMED])
        more = ", …" if len(nulls) > _NAMED else ""
        raise NullKeyError(
            f"key column {name!r} is NULL in row {rows}{more} (from 0);"
            " fill it in the source, or choose another key"
        )

    def _text(self, columns: Mapping[str, Array], slot: Slot, first_row: int) -> Array:
        if isinstance(slot, JsonColumn):
            return self._rendered(columns[slot.column], slot.column, first_row)
        assert isinstance(slot, Placeholder)
        column = columns[slot.column]
        for name in slot.path[1:]:
            column = pc.struct_field(column, name)
        return self._rendered(column, str(slot), first_row)

    def _rendered(self, column: Array, name: str, first_row: int) -> Array:
        try:
            return rendered(column)
        except UnrenderableError as error:
            row = _first_bad(column, rendered)
            raise ManifestError(
                f"column {name!r}, row {first_row + row} (from 0): {error}"
            ) from None

    def _without_nulls(
        self, texts: dict[Slot, Array], rows: int, first_row: int
    ) -> tuple[dict[Slot, Array], npt.NDArray[np.int64], Array]:
        """Apply `on_null`; give the texts of the rows that are sent, these rows, and reasons."""
        holed = [slot for slot, text in texts.items() if text.null_count]
        everything = np.arange(rows)
        if not holed:
            return texts, everything, pa.nulls(rows, pa.string())
        if self._on_null == "empty":
            return (
                {s: t.fill_null("") for s, t in texts.items()},
                everything,
                pa.nulls(rows, pa.string()),
            )
        if self._on_null == "error":
            slot = holed[0]
            row = int(np.argmax(texts[slot].is_null().to_numpy(zero_copy_only=False)))
            raise ManifestError(
                f"column {_name(slot)!r}, row {first_row + row} (from 0) is NULL and the request"
                " needs it; fill it in the source, or say on_null: empty or on_null: skip"
            )
        reasons: list[str | None] = [None] * rows
        for slot in reversed(holed):  # of several the first one is told
            for row in np.flatnonzero(texts[slot].is_null().to_numpy(zero_copy_only=False)):
                reasons[row] = f"null:{_name(slot)}"
        sent = np.array([row for row, why in enumerate(reasons) if why is None], np.int64)
        chosen = pa.array(sent)
        kept = {slot: text.take(chosen) for slot, text in texts.items()}
        return kept, sent, pa.array(reasons, pa.string())


def _name(slot: Slot) -> str:
    return slot.column if isinstance(slot, JsonColumn) else str(slot)


def _first_bad(column: Array, check: Callable[[Array], Any]) -> int:
    """Find the first row whose value alone fails the check."""
    for row in range(len(column)):
        try:
            check(column.slice(row, 1))
        except (pa.ArrowInvalid, UnrenderableError):
            return row
    return 0
