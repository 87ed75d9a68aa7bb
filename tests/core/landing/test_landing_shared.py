"""A landing that is shared among processes lands what one process lands, in every disorder."""

import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrouter.landing import shares

ROWS = 3500
SKIPPED = (3, 999, 1000, 2500)

Lines = list[Any]


@pytest.fixture(autouse=True)
def share_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrouter.landing.shares.LEAST_ROWS", 0)


def _whole(lines: Lines) -> Lines:
    return lines


def _without_one(lines: Lines) -> Lines:
    return lines[:1700] + lines[1701:]


def _one_replaced_by_another(lines: Lines) -> Lines:
    return [*lines[:1700], lines[20], *lines[1701:]]


def _unreadable(lines: Lines) -> Lines:
    return [*lines[:2100], b'{"customer_item_id": "x\n', *lines[2101:]]


def _with_blank_lines(lines: Lines) -> Lines:
    return [*lines[:1200], b"\n  \n", *lines[1200:], b"\n"]


def _twice(lines: Lines) -> Lines:
    return [*lines, *lines[5:9]]


def _shuffled_tail(lines: Lines) -> Lines:
    tail = lines[2200:]
    random.Random(7).shuffle(tail)
    return lines[:2200] + tail


def _cut_short(lines: Lines) -> Lines:
    return lines[:2222]


def _of_nobody(lines: Lines) -> Lines:
    return [*lines[:1500], {"customer_item_id": "nobody"}, *lines[1501:]]


@pytest.mark.parametrize(
    "disorder",
    [_whole, _without_one, _one_replaced_by_another, _unreadable, _with_blank_lines, _twice,
     _shuffled_tail, _cut_short, _of_nobody],
)  # fmt: skip
def test_the_table_is_that_of_one_process(
    kit: Any,
    run_folder: Any,
    monkeypatch: pytest.MonkeyPatch,
    disorder: Callable[[Lines], Lines],
) -> None:
    sent = [n for n in range(ROWS) if n not in SKIPPED]
    lines: Lines = [kit.native(n) if n % 97 else kit.native(n, {"no": "text"}) for n in sent]
    run_folder.add_part(ROWS, disorder(lines), skipped=SKIPPED)
    landed: list[Any] = []

    for processes in (1, 2):
        monkeypatch.setenv("BATCHROUTER_PROCESSES", str(processes))
        report = run_folder.land(kit.text_job)
        landed.append((
            replace(report, duration_s=0, bytes=0), run_folder.landed(), run_folder.rejects
        ))  # fmt: skip

    assert landed[0] == landed[1]
    assert landed[0][0].rows == ROWS
    assert landed[0][0].skipped == len(SKIPPED)


def test_workers_do_the_shares(kit: Any, run_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the test above would hold if nothing were ever shared."""
    monkeypatch.setenv("BATCHROUTER_PROCESSES", "2")
    monkeypatch.setattr("batchrouter.landing.judged.Judge.batches", _fails)
    run_folder.add_part(ROWS, [kit.native(n) for n in range(ROWS)])

    assert run_folder.land(kit.text_job).succeeded == ROWS


def _fails(*_: Any) -> None:
    raise AssertionError("the run's own process judged a row")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    st.sampled_from([b"", b"\n"]),
    st.lists(st.integers(0, 31), max_size=5),
    st.integers(1, 12),
)
def test_line_starts_are_those_of_a_count_by_hand(
    lines: list[bytes], last: bytes, numbers: list[int], chunk_bytes: int
) -> None:
    whole = [line + b"\n" for line in lines]
    if whole and lines[-1]:
        whole[-1] = lines[-1] + last
    asked = [0, *sorted(numbers)]
    starts = [sum(map(len, whole[:number])) for number in range(len(whole) + 1)]
    expected = [starts[number] for number in asked] if asked[-1] == len(whole) else None

    with patch.object(shares, "CHUNK_BYTES", chunk_bytes):
        found = shares._line_starts(io.BytesIO(b"".join(whole)), asked)

    assert found == expected
