"""One whole job, from a Parquet file to a landed table: the time and memory of each stage.

    python tests/benchmarks/bench_whole_job.py [--rows 1000000]

The embedded router and the job run in processes of their own, as they do for users. Each stage
shows what both spent in it: wall and CPU seconds, and the highest memory so far (resident set,
children included, read five times a second). What the job's process loads before its first
stage is a stage of its own, `start`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench_build import OUTPUT, SYSTEM
from tickets import make_table

from batchrouter.testing import running_router

_LOOK_INTERVAL_S = 0.2
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Watched:
    """A process with its children, seen from outside.

    Attributes:
        peak_bytes: The highest sum of their resident sets that was seen.
    """

    pid: int
    peak_bytes: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look until `stop`."""
        while not self._ended.wait(_LOOK_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, _family(self.pid))))

    def stop(self) -> None:
        """End the watching thread."""
        self._ended.set()

    def cpu_s(self) -> float:
        """Sum user and system seconds of the process and of its children, ended ones included."""
        return sum(map(_cpu_s, _family(self.pid)))


def _family(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                family.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            continue
    return family


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _cpu_s(pid: int) -> float:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, after_name[11:15])) / _CLOCK_TICKS_PER_S


JOB_PROCESS = """
import json, sys
from batchrouter import Client, Job, Run, Settings

document, runs_url, base_url, api_key = json.loads(sys.stdin.readline())
stage = "start"

def on_progress(progress):
    global stage
    if progress.stage != stage:
        stage = progress.stage
        print(json.dumps({"stage": stage}), flush=True)

settings = Settings(base_url=base_url, api_key=api_key, runs_url=runs_url)
with Client(settings) as client:
    run = Run.open(Job.model_validate(document), run_key="bench", runs_url=runs_url,
                   client=client, on_progress=on_progress)
    receipt = run.execute()
print(json.dumps({"receipt": receipt.to_dict()}), flush=True)
sys.stdin.readline()
"""


def job_document(source: Path, sink: Path) -> dict[str, object]:
    """The job: a chat with a label and a flag as output."""
    return {
        "name": "bench",
        "source": str(source),
        "key": "id",
        "request": {
            "kind": "chat",
            "system": SYSTEM,
            "user": "Subject: {subject}\n\n{body}",
            "output": OUTPUT,
            "parameters": {"max_output_tokens": 64, "temperature": 0},
        },
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "none",
        "sink": str(sink),
        "keep": ["subject"],
    }


@dataclass(frozen=True)
class Moment:
    """Where both processes stood when a stage began."""

    stage: str
    at_s: float
    job_cpu_s: float
    router_cpu_s: float
    job_peak_bytes: int
    router_peak_bytes: int


def run_job(document: dict[str, object], folder: Path) -> tuple[list[Moment], dict[str, object]]:
    """Run the job against a fresh router; one moment a stage, and one at the end."""
    moments: list[Moment] = []
    receipt: dict[str, object] = {}
    with running_router(folder / "router") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", JOB_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        job, router = Watched(process.pid), Watched(server.pid)
        for watched in (job, router):
            threading.Thread(target=watched.watch, daemon=True).start()

        def note(stage: str) -> None:
            moments.append(
                Moment(stage, time.perf_counter(), job.cpu_s(), router.cpu_s(),
                       job.peak_bytes, router.peak_bytes)
            )  # fmt: skip

        note("start")
        asked = [document, str(folder / "runs"), server.base_url, server.api_key]
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            if "receipt" in said:
                receipt = said["receipt"]
                note("end")
                break
            note(said["stage"])
        process.communicate(b"\n", timeout=60)
        job.stop()
        router.stop()
        if process.returncode != 0:
            raise SystemExit(f"the job's process ended with {process.returncode}")
    return moments, receipt


def print_table(moments: list[Moment], rows: int) -> None:
    """Print one line a stage: what it took, and the peaks up to its end."""
    heads = ("wall s", "share", "rows/s", "job CPU s", "router CPU s", "job peak", "router peak")
    print(f"{'stage':10}" + "".join(f"{head:>14}" for head in heads))
    whole_s = moments[-1].at_s - moments[0].at_s
    spans = [*pairwise(moments), (moments[0], moments[-1])]
    for begin, end in spans:
        wall_s = end.at_s - begin.at_s
        cells = (
            f"{wall_s:.1f}",
            f"{wall_s / whole_s:.0%}",
            f"{rows / wall_s:,.0f}",
            f"{end.job_cpu_s - begin.job_cpu_s:.1f}",
            f"{end.router_cpu_s - begin.router_cpu_s:.1f}",
            f"{end.job_peak_bytes / 1e6:.0f} MB",
            f"{end.router_peak_bytes / 1e6:.0f} MB",
        )
        name = "whole" if end is moments[-1] and begin is moments[0] else begin.stage
        print(f"{name:10}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    """Make a table, run the job, print what each stage took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as temporary:
        folder = Path(temporary)
        source = folder / "tickets.parquet"
        make_table(source, options.rows)
        moments, receipt = run_job(job_document(source, folder / "table"), folder)
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    print(f"{options.rows:,} rows; receipt: {json.dumps(receipt.get('rows'))}")
    print(f"{size_bytes / 1e6:,.0f} MB of JSON lines were left by run and router\n")
    print_table(moments, options.rows)


if __name__ == "__main__":
    main()
