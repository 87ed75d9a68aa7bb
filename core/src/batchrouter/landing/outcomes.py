"""What became of one row: its status, and why.

=================  ==============================================================================
`_status`          when
=================  ==============================================================================
`succeeded`        the line has an answer of the kind that the job asked for. A text that the
                   output cap cut has `_error_code` `output_truncated`, as a warning
`failed`           the line has an error, whose code and message are kept; or the whole batch
                   failed and has no line (`batch_failed`)
`invalid_output`   the answer is there, was paid for, and is something else; it is in
                   `_raw_output`, and `_error_message` names the path of the first error
`missing`          the row was sent, and no readable line names it, or the line of a batch that
                   was cut short only says so; the code says how the batch ended (`cancelled`,
                   `expired`), else `no_line`
`skipped`          the row was not sent; `_error_message` says why
=================  ==============================================================================
"""

from typing import Any

import msgspec

from batchrouter.landing.bodies import UnusableError
from batchrouter.landing.envelope import REPLACED, Envelope, tokens
from batchrouter.landing.outputs import OutputReader
from batchrouter.landing.regular import Line, RegularLine
from batchrouter.landing.report import PartToLand

BATCH_FAILED = "batch_failed"
"""The code of a row whose whole batch failed, and which therefore has no line."""

_CUT_SHORT = frozenset({"cancelled", "expired"})
_USD = frozenset({None, "usd", "USD"})


class Outcome(msgspec.Struct, gc=False):
    """One landed row's own columns; `value` is for the output's columns."""

    status: str
    code: str | None = None
    message: str | None = None
    raw: str | None = None
    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: str | None = None
    completed_at: str | None = None
    value: Any = None
    batch_id: str | None = None
    """Where it is not that of the row's own part."""


def outcome_of(line: Line, reader: OutputReader) -> Outcome:
    """Judge one line.

    Example:
        >>> from batchrouter.landing.envelope import read_line
        >>> from batchrouter.landing.outputs import TextReader
        >>> line = read_line(b'{"customer_item_id": "a", "output": {"content": "yes"}}')
        >>> outcome_of(line, TextReader()).value
        'yes'
    """
    if type(line) is RegularLine:
        return outcome_of_regular(line, reader)
    assert isinstance(line, Envelope)
    told_in, told_out = tokens(line.usage)
    cost = line.cost
    outcome = Outcome(
        "succeeded",
        None,
        None,
        None,
        line.provider,
        line.provider_model,
        told_in,
        told_out,
        cost.amount if cost is not None and cost.currency in _USD else None,
        line.completed_at,
    )
    failure = line.failure
    if failure is not None:
        outcome.status = "failed"
        outcome.code, outcome.message = failure
        return outcome
    try:
        value, is_cut = reader.read(line.output)
    except UnusableError as error:
        outcome.status = "invalid_output"
        outcome.code, outcome.message, outcome.raw = error.code, str(error), error.raw
        return outcome
    if line.is_altered:
        _set_altered(outcome, line)
        return outcome
    outcome.value = value
    if is_cut:
        outcome.code = "output_truncated"
        outcome.message = "the output cap cut the text"
    return outcome


def outcome_of_regular(line: RegularLine, reader: OutputReader) -> Outcome:
    """Judge a line that is as nearly all are."""
    usage = line.usage
    outcome = Outcome(
        "succeeded",
        None,
        None,
        None,
        line.provider,
        line.provider_model,
        usage.input_tokens,
        usage.output_tokens,
        line.cost.amount,
        line.completed_at,
    )
    try:
        outcome.value = reader.read_text(line.output.choices[0].message.content)
    except UnusableError as error:
        outcome.status = "invalid_output"
        outcome.code, outcome.message, outcome.raw = error.code, str(error), error.raw
    return outcome


def _set_altered(outcome: Outcome, line: Envelope) -> None:
    outcome.status = "invalid_output"
    outcome.code = "invalid_unicode"
    outcome.message = f"a lone surrogate stands in the line; {REPLACED} replaces it"
    outcome.raw = bytes(line.output).decode(errors="replace")


def outcome_in(part: PartToLand, line: Line | None, reader: OutputReader) -> Outcome:
    """Judge a row that was sent: its line, or why it has none.

    A batch that was cancelled may have a line for each item all the same, and those that say no
    more than that are no different from those that are not there.

    Example:
        >>> from batchrouter.landing.envelope import read_line
        >>> from batchrouter.landing.outputs import TextReader
        >>> line = read_line(b'{"customer_item_id": "a", "error": {"code": "cancelled"}}')
        >>> part = PartToLand(0, "rows.parquet", 1, batch_state="cancelled")
        >>> outcome_in(part, line, TextReader()).status
        'missing'
    """
    if line is None:
        return outcome_without_line(part)
    outcome = outcome_of(line, reader)
    if outcome.code in _CUT_SHORT and _plain_state(part) in _CUT_SHORT:
        outcome.status = "missing"
    return outcome


def _plain_state(part: PartToLand) -> str | None:
    return "cancelled" if part.batch_state == "canceled" else part.batch_state


def outcome_without_line(part: PartToLand) -> Outcome:
    """Say why a row that was sent has no line.

    Example:
        >>> part = PartToLand(0, "rows.parquet", 1, batch_state="expired")
        >>> outcome_without_line(part).code
        'expired'
    """
    state = _plain_state(part)
    told = ": ".join(filter(None, part.batch_error or ()))
    if state == "failed":
        return Outcome("failed", BATCH_FAILED, told or "the batch failed and told no reason")
    if state in _CUT_SHORT:
        return Outcome(
            "missing", state, told or f"the batch ended {state} before this item was done"
        )
    if part.artifact_path is None:
        return Outcome("missing", "no_artifact", told or "no artifact came for this part")
    return Outcome("missing", "no_line", "no readable line of the artifact names this item")


def outcome_of_repeated(part: PartToLand, line: Line | None, reader: OutputReader) -> Outcome:
    """Judge a row whose request was sent for another row of `part`; it cost nothing more.

    Example:
        >>> from batchrouter.landing.envelope import read_line
        >>> from batchrouter.landing.outputs import TextReader
        >>> cost = b'"cost": {"amount": "0.1"}'
        >>> line = read_line(b'{"customer_item_id": "a", %s, "output": {"content": "yes"}}' % cost)
        >>> outcome = outcome_of_repeated(PartToLand(0, "rows.parquet", 1), line, TextReader())
        >>> outcome.value, outcome.cost_usd
        ('yes', '0')
    """
    outcome = outcome_in(part, line, reader)
    outcome.batch_id = part.batch_id
    if outcome.cost_usd is not None:
        outcome.cost_usd = "0"
    if outcome.input_tokens is not None:
        outcome.input_tokens = 0
    if outcome.output_tokens is not None:
        outcome.output_tokens = 0
    return outcome


def outcome_of_skipped(reason: str | None) -> Outcome:
    """Keep the build's reason for not sending a row."""
    return Outcome("skipped", "skipped", reason)
