"""How time and memory of a build and of a landing grow with the table.

Short rows (a body of about 90 bytes, a line of 460), so that the disk holds 20 million of them.
Each step runs in one process of its own; the table, the artifact (1 % failed, a few answers that
do not fit) and all that is written stand in TMPDIR, some 1 kB a row at the most.

Run ``python tests/benchmarks/bench_sizes.py [--rows 200000 2000000 20000000] [--plot FILE.svg]``;
the plot wants ``pip install matplotlib``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from answers import OUTPUT, answer
from process_tree import run_measured
from tickets import make_table

STEPS = {"build": "o-", "land": "s--"}
"""What is measured, and how its lines are drawn."""

Line = tuple[str, str, list[float]]
"""Of a plot: its name, its style, and a value for each size."""


def job_of(source: Path) -> Any:
    """Ask a short prompt of each ticket."""
    from batchrouter.job import Job

    return Job.model_validate({
        "name": "bench",
        "source": str(source),
        "key": "id",
        "request": {
            "kind": "chat",
            "system": "You label support tickets.",
            "user": "{body}",
            "output": OUTPUT,
            "parameters": {"max_output_tokens": 64},
        },
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "none",
        "sink": "table",
    })


def build(folder: Path) -> int:
    """Build the manifest, and write down what its parts are."""
    import fsspec

    from batchrouter.manifest.build import build_manifest

    built = build_manifest(
        job_of(folder / "tickets.parquet"),
        fs=fsspec.filesystem("file"),
        manifest_dir=str(folder / "manifest"),
        rows_dir=str(folder / "rows"),
        token="t",
    )
    (folder / "built.json").write_text(json.dumps(built.to_dict()))
    return built.row_count


def answer_parts(folder: Path, *, all_succeed: bool = False) -> None:
    """Answer every item of every part, and let go of the manifests."""
    for part in json.loads((folder / "built.json").read_text())["parts"]:
        (folder / "manifest" / part["manifest_path"]).unlink()
        artifact = folder / f"artifact-{part['index']}.jsonl"
        answer(folder / "rows" / part["rows_path"], artifact, all_succeed=all_succeed)


def to_land(folder: Path) -> dict[str, Any]:
    """Say what is landed, and under which name, however it is done."""
    import fsspec

    from batchrouter.landing.report import LandingIdentity, PartToLand

    return {
        "fs": fsspec.filesystem("file"),
        "parts": [
            PartToLand(
                part["index"],
                str(folder / "rows" / part["rows_path"]),
                part["row_count"],
                str(folder / f"artifact-{part['index']}.jsonl"),
                f"batch_{part['index']}",
            )
            for part in json.loads((folder / "built.json").read_text())["parts"]
        ],
        "identity": LandingIdentity("bench", "run", "run-0"),
        "rejects_dir": str(folder),
        "token": "bench",
    }


def land(folder: Path, *, kind: str = "") -> int:
    """Land all parts into a Parquet directory, or a table of another kind."""
    from batchrouter.landing.land import land_parts
    from batchrouter.landing.sinks import open_sink

    job = job_of(folder / "tickets.parquet")
    return land_parts(job, sink=open_sink(f"{kind}{folder}/table"), **to_land(folder)).rows


def prepare() -> None:
    """Import what a step needs, and set this process up as our own program does."""
    from batchrouter.manifest.process import own_process, prepare_process

    own_process()
    prepare_process()
    for name in ("fsspec", "batchrouter.job", "batchrouter.landing.land"):
        import_module(name)


def run_step(step: str, folder: Path) -> None:
    """Take a step here, and print what it took, imports left out."""
    prepare()
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    rows = {"build": build, "land": land}[step](folder)
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    print(json.dumps({"rows": rows, "wall_s": wall_s, "cpu_s": cpu_s}))


def measured(rows: int, take: Callable[[str, Path], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Make a table of so many rows, and take both steps, the answers made in between."""
    told: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as name:
        folder = Path(name)
        make_table(folder / "tickets.parquet", rows, is_short=True)
        for step in STEPS:
            if step == "land":
                answer_parts(folder)
            told[step] = take(step, folder)
            assert told[step]["rows"] == rows
    return told


def take(step: str, folder: Path) -> dict[str, Any]:
    """Take a step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, str(folder)]
    return run_measured(command, {**os.environ, "BATCHROUTER_PROCESSES": "1"})


def plot(told: dict[int, dict[str, dict[str, Any]]], path: Path) -> None:
    """Draw time and memory over the size of the table."""
    panels: dict[str, list[Line]] = {
        label: [
            (step, style, [told[rows][step][field] for rows in told])
            for step, style in STEPS.items()
        ]
        for field, label in (("cpu_s", "CPU seconds"), ("peak_mb", "peak MB"))
    }
    draw(panels, list(told), path)


def draw(panels: Mapping[str, Sequence[Line]], rows: Sequence[int], path: Path) -> None:
    """Draw two measures over the size of the table: what grows with it, and memory."""
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, (measure, lines) in zip(axes, panels.items(), strict=True):
        for name, style, values in lines:
            axis.plot(rows, values, style, label=name)
        axis.set_xscale("log")
        axis.set_xticks(rows, [f"{each:,}" for each in rows])
        axis.xaxis.minorticks_off()
        axis.set_xlabel("rows")
        axis.set_ylabel(measure)
        axis.grid(visible=True, alpha=0.3)
        # Below, where no line is.
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
        axis.legend(**place, ncols=2, fontsize="small", handlelength=3)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000, 20_000_000])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given.step[0], Path(given.step[1]))
        return
    told: dict[int, dict[str, dict[str, Any]]] = {}
    print("| rows | | s | CPU s | rows/CPU s | peak MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for rows in given.rows:
        told[rows] = measured(rows, take)
        for step, one in told[rows].items():
            speed = f"{one['wall_s']:.1f} | {one['cpu_s']:.1f} | {rows / one['cpu_s']:,.0f}"
            print(f"| {rows:,} | {step} | {speed} | {one['peak_mb']:.0f} |", flush=True)
    if given.plot:
        plot(told, given.plot)


if __name__ == "__main__":
    main()
