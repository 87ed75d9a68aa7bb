"""Any mixture of good and bad lines, against the plainest reader there is."""

import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS = 12
line_kinds = st.sampled_from(["good", "failed", "garbage", "unknown", "null output", "blank"])
mixtures = st.lists(st.tuples(st.integers(0, ROWS - 1), line_kinds), max_size=30)


def make(kit: Any, kind: str, row: int, n: int) -> dict[str, Any] | bytes:
    if kind == "garbage":
        return b"%d}\n" % n
    if kind == "blank":
        return b" \r\n"
    changed: dict[str, dict[str, Any]] = {
        "good": {"output": kit.chat_body(f"line {n}")},
        "failed": {"output": None, "error": {"code": "x", "message": str(n)}},
        "unknown": {"customer_item_id": f"stranger {n}"},
        "null output": {"output": None},
    }
    return kit.native(row, **changed[kind])


def expected_rows(kit: Any, lines: list[dict[str, Any] | bytes], skipped: set[int]) -> list[Any]:
    first: dict[str, dict[str, Any]] = {}
    for line in lines:
        if isinstance(line, dict):
            first.setdefault(line["customer_item_id"], line)
    rows: list[Any] = []
    for row in range(ROWS):
        line = first.get(kit.item_id(row))
        if row in skipped:
            rows.append(("skipped", None))
        elif line is None:
            rows.append(("missing", None))
        elif line["error"]:
            rows.append(("failed", None))
        elif line["output"] is None:
            rows.append(("invalid_output", None))
        else:
            rows.append(("succeeded", line["output"]["choices"][0]["message"]["content"]))
    return rows


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(mixture=mixtures, skipped=st.sets(st.integers(0, ROWS - 1)), cut=st.integers(0, 60))
def test_any_mixture_lands_as_the_plainest_reader_says(
    kit: Any, run_folder: Any, mixture: list[tuple[int, str]], skipped: set[int], cut: int
) -> None:
    in_order = [kit.native(row) for row in range(ROWS) if row not in skipped]
    lines = in_order[: cut % (ROWS + 1)]
    lines += [
        make(kit, kind, row, n) for n, (row, kind) in enumerate(mixture) if row not in skipped
    ]
    run_folder.parts.clear()
    run_folder.rows_so_far = 0
    run_folder.add_part(ROWS, lines, skipped=tuple(skipped))

    report = run_folder.land(kit.text_job)

    landed = [(row["_status"], row["output"]) for row in run_folder.landed()]
    assert landed == expected_rows(kit, lines, skipped)
    known = sum(isinstance(each, dict) for each in lines)
    found = report.succeeded + report.failed + report.invalid_output
    assert known == found + report.unknown_lines + report.duplicate_lines
    assert report.quarantined == sum(
        bool(re.match(rb"\d+}", e)) for e in lines if isinstance(e, bytes)
    )
