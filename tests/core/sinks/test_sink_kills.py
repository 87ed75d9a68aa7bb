"""SIGKILL in a commit, a reader beside it: the old table or the new one, and one copy at last."""

import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from core.sinks.kinds import Kind

ROWS = 6_000
POINTS = {
    "landing.before_write": False,
    "landing.mid_write": False,
    "landing.before_commit": False,
    "landing.mid_commit": False,
    "landing.after_commit": True,
}
MODES = ["replace_run", "append", "overwrite", "merge"]


def _seen(kind: Kind) -> Counter[str]:
    return Counter(row["_run_key"] for row in kind.read())


@pytest.mark.parametrize(
    ("point", "mode"),
    [
        *((point, "replace_run") for point in POINTS),
        *((point, mode) for point in list(POINTS)[-2:] for mode in MODES[1:]),
    ],
)
def test_a_landing_killed_at_a_point_is_healed(kind: Kind, point: str, mode: str) -> None:
    kind.write(range(100, 300), "before", mode)
    after = {
        "overwrite": Counter(monday=ROWS),
        "merge": Counter(monday=ROWS),
    }.get(mode, Counter(before=200, monday=ROWS))

    killed = kind.land(ROWS, "monday", mode, BATCHROUTER_KILL_AT=point)
    told = killed.communicate(timeout=120)[1]

    assert killed.returncode == -signal.SIGKILL, told
    assert _seen(kind) == (after if POINTS[point] else Counter(before=200))
    healed = kind.land(ROWS, "monday", mode)
    told = healed.communicate(timeout=120)[1]
    assert healed.returncode == 0, told
    assert _seen(kind) == after


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_moment_of_a_commit(kind: Kind, mode: str) -> None:
    """No library says where it is: the process dies after a while, somewhere in the commit."""
    kind.write(range(100, 300), "before", mode)
    before = Counter(before=200)
    after = {
        "overwrite": Counter(monday=ROWS),
        "merge": Counter(monday=ROWS),
    }.get(mode, Counter(before=200, monday=ROWS))

    for wait_s in (0.0, 0.03, 0.1):
        landing = kind.land(ROWS, "monday", mode, BATCHROUTER_STOP_AT="landing.mid_commit")
        if not _stopped(landing):
            landing.communicate()
            break  # it was committed the time before
        landing.send_signal(signal.SIGCONT)
        time.sleep(wait_s)
        landing.kill()
        landing.communicate(timeout=60)
        seen = _seen(kind)
        assert seen in (before, after)
        if seen == after:
            break
    healed = kind.land(ROWS, "monday", mode)
    told = healed.communicate(timeout=120)[1]
    assert healed.returncode == 0, told
    assert _seen(kind) == after


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_beside_sees_the_old_table_or_the_new_one(kind: Kind, mode: str) -> None:
    if kind.name == "duckdb":
        pytest.skip("DuckDB lets no other process read a file while one writes it")
    kind.write(range(100, 300), "before", mode)
    allowed = {200, 200 + ROWS} if mode in {"replace_run", "append"} else {200, ROWS}

    landing = kind.land(ROWS, "monday", mode)
    seen: set[int] = set()
    while landing.poll() is None:
        seen.add(len(kind.read()))

    told = landing.communicate()[1]
    assert landing.returncode == 0, told
    assert seen <= allowed


def _stopped(process: subprocess.Popen[str]) -> bool:
    """Wait until it stopped at its point; False when it ended without passing it."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            return False
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return True
        time.sleep(0.01)
    raise AssertionError("it neither stopped nor ended")
