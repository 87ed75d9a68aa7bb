"""Rows of a snapshot with their answers → batches of the landed table."""

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import pyarrow as pa

from batchrouter.landing.answers import Answers
from batchrouter.landing.envelope import read_line
from batchrouter.landing.outcomes import (
    Outcome,
    outcome_in,
    outcome_of_regular,
    outcome_of_repeated,
    outcome_of_skipped,
)
from batchrouter.landing.outputs import OutputReader
from batchrouter.landing.regular import RegularLine, read_regular
from batchrouter.landing.repeats import Repeated
from batchrouter.landing.report import PartToLand
from batchrouter.landing.table import landed_batch

_BATCH_BYTES = 16 << 20
_RUN_ROWS = 256
"""Lines that are decoded before the first of them is judged."""


class Judge:
    """Judges the rows of one run.

    Args:
        schema: What `landed_schema` gave.
        reader: The output's reader.
        run_key: The run's key.
    """

    def __init__(self, schema: pa.Schema, reader: OutputReader, run_key: str) -> None:
        self._schema = schema
        self._reader = reader
        self._run_key = run_key
        self.read_line = read_regular if reader.hears_text else read_line
        """How the lines are best read."""

    def batches(
        self,
        part: PartToLand,
        batches: Iterable[pa.RecordBatch],
        answers: Answers,
        repeated: Iterator[Repeated],
    ) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield rows of the snapshot and the landed rows beside them, in bounded batches.

        Args:
            part: The part.
            batches: Its rows.
            answers: The lines of those that were sent.
            repeated: The answers of those that repeat another row's request, if there are any.
        """
        for rows in batches:
            begin = 0
            while begin < len(rows):
                outcomes = self._outcomes(part, rows.slice(begin), answers, repeated)
                some = rows.slice(begin, len(outcomes))
                yield (
                    some,
                    landed_batch(
                        self._schema,
                        some,
                        outcomes,
                        self._reader,
                        batch_id=part.batch_id,
                        run_key=self._run_key,
                    ),
                )
                begin += len(outcomes)

    def _outcomes(
        self,
        part: PartToLand,
        rows: pa.RecordBatch,
        answers: Answers,
        repeated: Iterator[Repeated],
    ) -> list[Outcome]:
        """Judge rows until their outputs are as large as a batch may be."""
        ids = cast("list[str]", rows.column("_item_id").to_pylist())
        is_sent = rows.column("_line").is_valid().to_numpy(zero_copy_only=False)
        # Where the next row that was not sent stands, or the end.
        unsent = [*np.flatnonzero(~is_sent).tolist(), len(ids)]
        reader = self._reader
        outcomes: list[Outcome] = []
        held_bytes = 0
        for end in unsent:
            while len(outcomes) < end:
                if held_bytes >= _BATCH_BYTES:
                    return outcomes
                start = len(outcomes)
                lines = answers.next_run(ids[start : min(end, start + _RUN_ROWS)])
                outcomes += [
                    outcome_of_regular(line, reader)
                    if type(line) is RegularLine
                    else outcome_in(part, line, reader)
                    for line in lines
                ]
                held_bytes += sum(line.held_bytes for line in lines if line)
            if end == len(ids):
                break
            reason = rows.column("_skip_reason")[end].as_py()
            if reason is not None:
                outcomes.append(outcome_of_skipped(reason))
            else:
                of_part, line = next(repeated)
                outcomes.append(outcome_of_repeated(of_part, line, self._reader))
                held_bytes += line.held_bytes if line else 0
        return outcomes
