"""What a command takes: the largest memory of its whole process tree, sampled while it runs.

Memory is proportional (PSS): pages that processes share count once. CPU and wall times are told by
the command itself, which leaves its imports out.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAMPLE_S = 0.05


def run_measured(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 3600,
) -> dict[str, Any]:
    """Run a command that prints one JSON object last; adds its tree's `peak_mb`.

    Raises:
        SystemExit: It failed, or was killed after `timeout_s`.
    """
    peak_kib = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        ended = threading.Event()
        too_long = threading.Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
        too_long.start()

        def sample() -> None:
            nonlocal peak_kib
            while not ended.wait(SAMPLE_S):
                peak_kib = max(peak_kib, _tree_kib(process.pid))

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        assert process.stdout is not None
        out = process.stdout.read()
        ended.set()
        too_long.cancel()
        sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(out.strip().rsplit("\n", 1)[-1]) | {"peak_mb": peak_kib * 1024 / 1e6}


def _tree_kib(pid: int) -> int:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it ended meanwhile
    own = int(told.partition("\nPss:")[2].split()[0])
    return own + sum(_tree_kib(int(child)) for child in children)
