"""How fast published batch clients write the same requests; each in an environment of its own.

    python tests/benchmarks/bench_peers.py [--rows 20000] [--rounds 3]

The environments are made in a temporary folder with `venv` and `pip`; a client that cannot be
installed, or does not end in five minutes, is left out, with a word. Each reads the same Parquet
table and writes its own request file; ours is built beside them. Rates are by CPU seconds, imports
left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LONGEST_S = 300.0
PEERS = ("openai-batch", "langbatch", "bespokelabs-curator")
SYSTEM = "You label support tickets for a shop. Answer with one of the intents. " * 4


def rows_of(source: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
    for batch in parquet.iter_batches(4096, use_threads=False):
        yield from batch.to_pylist()


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    user = f"Subject: {row['subject']}\n\n{row['body']}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def with_openai_batch(source: Path, target: Path) -> None:
    from openai_batch import Batch  # pyright: ignore[reportMissingImports] - in its own environment

    batch = None
    for at, row in enumerate(rows_of(source)):
        if at % 40_000 == 0:  # it takes 50,000 requests and 100 MB a file
            if batch is not None:
                batch.__exit__(None, None, None)
            batch = Batch(submission_input_file=str(target / f"{at}.jsonl"))
        assert batch is not None
        batch.add_to_batch(model="gpt-4o-mini", messages=messages_of(row), max_tokens=64)
    if batch is not None:
        batch.__exit__(None, None, None)


def with_langbatch(source: Path, target: Path) -> None:
    os.chdir(target)
    from langbatch.openai import OpenAIChatCompletionBatch  # pyright: ignore[reportMissingImports] - in its own environment

    OpenAIChatCompletionBatch.create(
        [messages_of(row) for row in rows_of(source)],
        request_kwargs={"model": "gpt-4o-mini", "max_tokens": 64},
    )


def with_curator(source: Path, target: Path) -> None:
    from bespokelabs.curator.llm.prompt_formatter import PromptFormatter  # pyright: ignore[reportMissingImports] - in its own environment
    from bespokelabs.curator.request_processor.batch.openai_batch_request_processor import (  # pyright: ignore[reportMissingImports] - in its own environment
        OpenAIBatchRequestProcessor,
    )
    from bespokelabs.curator.request_processor.config import (  # pyright: ignore[reportMissingImports] - in its own environment
        BatchRequestProcessorConfig,
    )
    from datasets import Dataset  # pyright: ignore[reportMissingImports] - in its own environment

    config = BatchRequestProcessorConfig(model="gpt-4o-mini", generation_params={"max_tokens": 64})
    processor = OpenAIBatchRequestProcessor(config)
    processor.working_dir = str(target)
    processor.prompt_formatter = PromptFormatter(
        model_name="gpt-4o-mini", prompt_func=messages_of, generation_params={"max_tokens": 64}
    )
    dataset = Dataset.from_parquet(str(source), cache_dir=str(target / "cache"))
    for path in processor.create_request_files(dataset):
        requests = processor.requests_from_generic_request_file(path, set())
        Path(f"{path}.sent").write_text(processor.create_batch_file(requests))


def with_ours(source: Path, target: Path) -> None:
    from bench_build import build

    os.environ["BATCHROUTER_PROCESSES"] = "1"
    build(source, target)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "batchrouter": with_ours,
    "openai-batch": with_openai_batch,
    "langbatch": with_langbatch,
    "bespokelabs-curator": with_curator,
}
IMPORTS = {
    "batchrouter": ("fsspec", "batchrouter.manifest.build"),
    "openai-batch": ("pyarrow.parquet", "openai_batch"),
    "langbatch": ("pyarrow.parquet", "langbatch.openai"),
    "bespokelabs-curator": (
        "datasets",
        "bespokelabs.curator.request_processor.batch.openai_batch_request_processor",
    ),
}


def measure(way: str, source: Path) -> None:
    """Run one way here and print what it took."""
    from importlib import import_module

    os.environ |= {"OPENAI_API_KEY": "none", "TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as target:
        os.chdir(target)
        for name in IMPORTS[way]:
            import_module(name)
        wall_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
        WAYS[way](source, Path(target))
        wall_s, cpu_s = time.perf_counter() - wall_s, sum(os.times()[:4]) - cpu_s
        os.chdir("/")
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))


def environment_of(peer: str, folder: Path) -> Path | None:
    """Install a client by itself; None, with a word, if that fails."""
    home = folder / peer
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = [
        str(home / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        peer,
        "pyarrow",
        "httpx",
    ]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{peer}: left out, it cannot be installed: {done.stderr.strip()[-200:]}")
        return None
    return home / "bin" / "python"


def main() -> None:
    """Measure all that can be installed, in turns, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SOURCE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], Path(asked.measure[1]))
        return
    from process_tree import run_measured
    from tickets import make_table

    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as temporary:
        folder = Path(temporary)
        make_table(folder / "tickets.parquet", asked.rows)
        found = {"batchrouter": Path(sys.executable)}
        found |= {peer: python for peer in PEERS if (python := environment_of(peer, folder))}
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in found}
        for _ in range(asked.rounds):
            for way, python in list(found.items()):
                command = [str(python), __file__, "--measure", way, f"{folder}/tickets.parquet"]
                try:
                    taken[way].append(run_measured(command, timeout_s=LONGEST_S))
                except SystemExit as failed:
                    print(f"{way}: left out, it failed or took over {LONGEST_S:.0f} s: {failed}")
                    del found[way], taken[way]
    print(f"{asked.rows:,} rows, medians of {asked.rounds}\n")
    print(f"{'':22}{'rows/CPU s':>12}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}")
    for way, runs in taken.items():
        cpu_s, wall_s, peak_mb = (
            statistics.median(run[name] for run in runs) for name in ("cpu_s", "wall_s", "peak_mb")
        )
        print(f"{way:22}{asked.rows / cpu_s:>12,.0f}{cpu_s:>8.2f}{wall_s:>8.1f}{peak_mb:>9.0f}")


if __name__ == "__main__":
    main()
