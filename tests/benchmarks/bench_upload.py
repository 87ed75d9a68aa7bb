"""How fast a manifest goes up, beside curl sending the same file to the same place.

    python tests/benchmarks/bench_upload.py [--megabytes 200] [--rounds 3]

To an embedded router, which checks every line while it arrives and so sets the pace; and to a
sink that only reads the bytes, which shows what the client itself takes. Every upload runs in a
process of its own, in turns; medians are printed.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from batchrouter.testing import running_router


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: ClassVar[bytes]

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: Any) -> None:
        pass


def serve_sink(manifest: Path) -> None:
    """Read uploads and keep nothing; the answer is true of the manifest, as the client checks."""
    with manifest.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    told = {
        "file_id": "file_1", "filename": "m.jsonl", "bytes": manifest.stat().st_size,
        "item_count": 1, "dialect": "native", "operation": "responses", "models": [],
        "input_tokens_estimate": 1, "sha256": sha256, "created_at": "2026-11-22T10:00:00Z",
    }  # fmt: skip
    _Sink.answer = json.dumps(told).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def _running_sink(manifest: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve-sink", str(manifest)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def make_manifest(path: Path, size_bytes: int) -> None:
    text = "The customer asks why the invoice was charged twice, and when the money comes back. "
    with path.open("w", encoding="utf-8") as file:
        for row in range(size_bytes // 1_650):
            line = {
                "customer_item_id": f"item{row:022d}",
                "operation": "responses",
                "input": {
                    "messages": [{"role": "user", "content": f"{row}: {text * 18}"}],
                    "max_output_tokens": 64,
                },
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def upload(base_url: str, api_key: str, manifest: Path) -> None:
    """Send once with our client, and print what it took, imports left out."""
    from batchrouter import Client

    with Client(base_url=base_url, api_key=api_key, timeout_s=600) as client:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        client.upload_manifest(manifest)
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak_kib / 1024}))


def _ours(base_url: str, api_key: str, manifest: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--to", base_url, "--manifest", str(manifest)]
    env = {**os.environ, "UPLOAD_KEY": api_key}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout)


def _curl(base_url: str, api_key: str, manifest: Path) -> dict[str, float]:
    before = os.times()
    started_s = time.perf_counter()
    subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", "--output", os.devnull,
         "--header", f"Authorization: Bearer {api_key}", "--form", f"file=@{manifest}",
         f"{base_url}/v1/batches/input-manifests"],
        check=True,
    )  # fmt: skip
    wall_s, after = time.perf_counter() - started_s, os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": float("nan")}


def measure(megabytes: int, rounds: int) -> None:
    """Send in turns, and print the table."""
    ways = {"ours": _ours, "curl": _curl}
    print(f"{'to':<8}{'by':<6}{'MB/s':>8}{'wall s':>9}{'CPU s':>8}{'peak MiB':>10}")
    with (
        ExitStack() as stack,
        tempfile.TemporaryDirectory() as folder,
        running_router(Path(folder) / "router") as router,
    ):
        manifest = Path(folder) / "m.jsonl"
        make_manifest(manifest, megabytes * 10**6)
        sink = stack.enter_context(_running_sink(manifest))
        size_mb = manifest.stat().st_size / 1e6
        for name, base_url in (("router", router.base_url), ("sink", sink)):
            told: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, send in ways.items():
                    told[way].append(send(base_url, router.api_key, manifest))
            rates: dict[str, float] = {}
            for way, taken in told.items():
                wall_s, cpu_s, peak_mib = (
                    statistics.median(each[what] for each in taken)
                    for what in ("wall_s", "cpu_s", "peak_mib")
                )
                rates[way] = size_mb / wall_s
                print(
                    f"{name:<8}{way:<6}{rates[way]:>8.0f}{wall_s:>9.2f}{cpu_s:>8.2f}"
                    f"{peak_mib:>10.0f}"
                )
            print(f"{name:<8}ours at {rates['ours'] / rates['curl']:.2f} of curl's rate")


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve-sink", type=Path)
    parser.add_argument("--to")
    parser.add_argument("--manifest", type=Path)
    asked = parser.parse_args()
    if asked.serve_sink:
        serve_sink(asked.serve_sink)
    elif asked.to:
        upload(asked.to, os.environ["UPLOAD_KEY"], asked.manifest)
    else:
        measure(asked.megabytes, asked.rounds)


if __name__ == "__main__":
    main()
