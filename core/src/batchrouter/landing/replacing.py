"""Rows that were sent again, put in the place of what they were before.

Both streams stand in source order, so one pass does it, and holds one batch of each.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.errors import LandingError
from batchrouter.landing.outcomes import BATCH_FAILED
from batchrouter.landing.table import USD
from batchrouter.manifest.arrow import Array, pc

Judged = Generator[tuple[pa.RecordBatch, pa.RecordBatch], None, None]
"""Rows of a snapshot, with `_row` at least, and the landed rows beside them."""

Places = npt.NDArray[np.int64]

_EXACT = pa.decimal256(50, USD.scale)
"""Arrow gives the sum of two amounts one digit more, and 38 are all that a decimal128 has."""


def replaced(rows: Judged, later: Judged) -> Judged:
    """Yield all rows, with those of a later round in the place of their own.

    A row that came back without a line keeps what it was. What both rounds cost and used is
    added up, so that the sums over the table are what was paid.

    Raises:
        LandingError: The later round has a row that is not among the others.
    """
    ahead = _Ahead(later)
    for some, batch in rows:
        places = some.column("_row").to_numpy()
        begin = 0
        while begin < len(places):
            found = ahead.take(int(places[-1]))
            if found is None:
                yield some.slice(begin), batch.slice(begin)
                break
            again_places, again = found
            end = int(np.searchsorted(places, again_places[-1], side="right"))
            at = np.searchsorted(places[begin:end], again_places)
            if end == begin or (places[begin:end][at] != again_places).any():
                raise _strange_row(int(again_places[0]))
            count = end - begin
            yield some.slice(begin, count), _with(batch.slice(begin, count), at, again)
            begin = end
    left = ahead.first()
    if left is not None:
        raise _strange_row(left)


def _strange_row(row: int) -> LandingError:
    return LandingError(
        f"a row that was sent again, near row {row} of the source, is none of the run's rows;"
        " nothing was committed"
    )


class _Ahead:
    """The batches of a stream, handed out up to a place in the source."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self._places: Places = np.empty(0, np.int64)
        self._batch: pa.RecordBatch | None = None

    def first(self) -> int | None:
        """The place of the next row, None at the end."""
        while not len(self._places):
            found = next(self._judged, None)
            if found is None:
                return None
            self._places, self._batch = found[0].column("_row").to_numpy(), found[1]
        return int(self._places[0])

    def take(self, last: int) -> tuple[Places, pa.RecordBatch] | None:
        """Give rows of the next batch that stand at `last` or before it, None without any."""
        first = self.first()
        if first is None or first > last or self._batch is None:
            return None
        count = int(np.searchsorted(self._places, last, side="right"))
        taken = self._places[:count], self._batch.slice(0, count)
        self._places, self._batch = self._places[count:], self._batch.slice(count)
        return taken


def _with(batch: pa.RecordBatch, at: Places, again: pa.RecordBatch) -> pa.RecordBatch:
    """Put rows at their places."""
    came = _came(again)
    if not came.any():
        return batch
    at, again = at[came], again.filter(pa.array(came))
    again = _with_costs_of(batch.take(at), again)
    chosen = np.arange(len(batch))
    chosen[at] = len(batch) + np.arange(len(again))
    [both] = pa.Table.from_batches([batch, again]).combine_chunks().to_batches()
    return both.take(chosen)


def _came(again: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Tell which rows came back with a line of their own."""
    is_missing: Any = pc.equal(again.column("_status"), "missing")
    code = again.column("_error_code").fill_null("")
    without_line = pc.or_(is_missing, pc.equal(code, BATCH_FAILED))
    return pc.invert(without_line).to_numpy(zero_copy_only=False)


def _with_costs_of(before: pa.RecordBatch, again: pa.RecordBatch) -> pa.RecordBatch:
    columns = list(again.columns)
    for name in ("_input_tokens", "_output_tokens"):
        first, second = before.column(name), again.column(name)
        both = pc.add(first, second)
        # Told numbers may be anything: a sum beyond int64 would come out negative.
        held = pc.if_else(pc.less(both, 0), second, both)
        columns[again.schema.get_field_index(name)] = pc.coalesce(held, second, first)
    columns[again.schema.get_field_index("_cost_usd")] = _summed_usd(
        before.column("_cost_usd"), again.column("_cost_usd")
    )
    return pa.RecordBatch.from_arrays(columns, schema=again.schema)


def _summed_usd(first: Array, second: Array) -> Array:
    both = pc.add(first.cast(_EXACT), second.cast(_EXACT))
    try:
        exact = both.cast(USD)
    except pa.ArrowInvalid:
        return second
    return pc.coalesce(exact, second, first)
