"""What the router costs an item, beside LiteLLM's proxy; how soon it sends; what open batches hold.

    python tests/benchmarks/bench_router.py [--items 20000] [--rounds 3] [--open 1000]

- Items per CPU second of the server, its whole process tree: a batch on the simulated lane, a batch
  on `openai-http` to a server that answers at once, and the same chats, one request each, through
  LiteLLM's proxy to the same server (installed in an environment of its own; left out, with a word,
  where that fails). What the client and the answering server take is not counted. A batch counts
  from its upload to its end.
- Seconds from a create to the first request at the provider, one batch at a time.
- The router's memory with so many batches open, whose lane takes nothing.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from batchrouter import Client
from batchrouter.testing import RunningRouter, running_router

IN_FLIGHT = 16
ENDS_WITHIN_S = 1800.0
PRICE = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
LITELLM = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MASTER_KEY": "sk-of-this-benchmark-alone-0123456789abcdef",
}
SYSTEM = "You label support tickets for a shop. Answer with one of the intents. " * 4


def main() -> None:
    """Measure all, and print three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open", type=int, default=1_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as temporary:
        folder = Path(temporary)
        with answering() as base_url:
            compare(folder, base_url, asked.items, asked.rounds)
            time_to_dispatch(folder, base_url)
        hold_open(folder, asked.open)


def compare(folder: Path, base_url: str, items: int, rounds: int) -> None:
    """Print what an item costs each of the three servers."""
    manifest = folder / "items.jsonl"
    with manifest.open("wb") as lines:
        for nth in range(items):
            lines.write(json.dumps(item(nth)).encode() + b"\n")
    config = {"credits": {"initial_usd": "100000"}, "lanes": lanes(base_url)}
    taken: dict[str, list[tuple[float, float]]] = {}
    with (
        running_router(folder / "router", config=config) as router,
        proxy_of_litellm(folder, base_url) as proxy,
    ):
        for _ in range(rounds):
            for model in ("simulated", "asked"):
                taken.setdefault(model, []).append(measure_batch(router, model, manifest, items))
            if proxy is not None:
                taken.setdefault("LiteLLM", []).append(measure_proxy(*proxy, items))
    names = {
        "simulated": "router, simulated lane",
        "asked": "router, openai-http",
        "LiteLLM": "LiteLLM proxy",
    }
    print(f"\n{items:,} items, medians of {rounds}\n")
    print("| | items per CPU second | items per second |\n| --- | --- | --- |")
    for way, runs in taken.items():
        cpu_s, wall_s = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {names[way]} | {items / cpu_s:,.0f} | {items / wall_s:,.0f} |", flush=True)


def item(nth: int) -> dict[str, Any]:
    text = f"Ticket {nth}: I paid twice for my order and would like one of the two back."
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {
        "customer_item_id": f"row-{nth}",
        "operation": "responses",
        "input": {"messages": messages, "max_output_tokens": 64},
    }


def lanes(base_url: str) -> list[dict[str, Any]]:
    """Three lanes, told apart by the model's name."""

    def lane(model: str, adapter: str, **options: Any) -> dict[str, Any]:
        return {
            "provider": f"simulated-{model}" if adapter == "simulated" else model,
            "adapter": adapter,
            "region": "eu",
            "capacity_items": 1_000_000,
            "models": [{"name": model, **PRICE, "tasks": ["responses"]}],
            "options": options,
        }

    return [
        lane("simulated", "simulated"),
        lane("asked", "openai-http", base_url=f"{base_url}/v1", concurrency=IN_FLIGHT),
        lane("down", "simulated", is_down=True, retry_first_s=60),
    ]


def buy(client: Client, model: str, manifest: Path, items: int) -> str:
    """Quote and buy a batch of the manifest; returns its id."""
    file = client.upload_manifest(manifest)
    quote = client.quote_model(
        [model], estimated_items=items, estimated_input_tokens=items * 120, max_output_tokens=64
    )
    return client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id}).id


def wait_for(client: Client, batch_id: str) -> None:
    give_up_at = time.monotonic() + ENDS_WITHIN_S
    while not (batch := client.retrieve_batch(batch_id)).is_terminal:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"{batch_id} did not end")
        time.sleep(0.2)
    if batch.state != "succeeded" or batch.counts is None or batch.counts.failed:
        raise SystemExit(f"{batch_id} ended as {batch.state}: {batch.counts}")


def measure_batch(
    router: RunningRouter, model: str, manifest: Path, items: int
) -> tuple[float, float]:
    with Client(router.settings()) as client:
        began_s, cpu_s = time.monotonic(), tree_cpu_s(router.pid)
        wait_for(client, buy(client, model, manifest, items))
        return tree_cpu_s(router.pid) - cpu_s, time.monotonic() - began_s


def measure_proxy(url: str, pid: int, items: int) -> tuple[float, float]:
    async def ask() -> None:
        numbers = iter(range(items))
        limits = httpx.Limits(max_connections=IN_FLIGHT)
        headers = {"Authorization": f"Bearer {LITELLM['LITELLM_MASTER_KEY']}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=60, limits=limits
        ) as client:

            async def work() -> None:
                for nth in numbers:
                    body = item(nth)["input"]
                    asked = {"model": "m", "messages": body["messages"], "max_tokens": 64}
                    reply = await client.post("/v1/chat/completions", json=asked)
                    reply.raise_for_status()

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    began_s, cpu_s = time.monotonic(), tree_cpu_s(pid)
    asyncio.run(ask())
    return tree_cpu_s(pid) - cpu_s, time.monotonic() - began_s


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children that live, user and system."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = sum(int(ticks) for ticks in told[11:15]) / TICKS_A_SECOND
    return own + sum(tree_cpu_s(int(child)) for child in children)


def time_to_dispatch(folder: Path, base_url: str, batches: int = 20) -> None:
    """Print how long after a create the provider is asked first."""
    manifest = folder / "ten.jsonl"
    manifest.write_text("".join(json.dumps(item(nth)) + "\n" for nth in range(10)))
    waits_s: list[float] = []
    config = {"lanes": lanes(base_url)}
    with (
        running_router(folder / "dispatching", config=config) as router,
        Client(router.settings()) as client,
    ):
        httpx.get(f"{base_url}/first")
        for _ in range(batches):
            file = client.upload_manifest(manifest)
            quote = client.quote_model(["asked"], estimated_items=10, max_output_tokens=64)
            body = {"quote_id": quote.quote_id, "input_file_id": file.file_id}
            sent_at = time.time()
            made = client.submit_batch(body)
            wait_for(client, made.id)
            waits_s.append(httpx.get(f"{base_url}/first").json()["first_at"] - sent_at)
    print(f"\nFrom a create to the first request at the provider, {batches} batches of 10:")
    print(f"median {statistics.median(waits_s):.2f} s, longest {max(waits_s):.2f} s", flush=True)


def hold_open(folder: Path, batches: int) -> None:
    """Print the router's memory before and with so many batches that wait for their lane."""
    manifest = folder / "ten.jsonl"
    config = {"credits": {"initial_usd": "100000"}, "lanes": lanes("http://127.0.0.1:1")}
    with (
        running_router(folder / "holding", config=config) as router,
        Client(router.settings()) as client,
    ):
        before = resident_mb(router.pid)
        for _ in range(batches):
            buy(client, "down", manifest, 10)
        time.sleep(10)
        after = resident_mb(router.pid)
    print(f"\nMemory with {batches:,} open batches: {after:.0f} MB; before the first: {before:.0f}")


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


@contextmanager
def answering() -> Iterator[str]:
    """Run the server that answers at once; yields its address."""
    server = Path(__file__).with_name("answering_server.py")
    with subprocess.Popen([sys.executable, server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def proxy_of_litellm(folder: Path, base_url: str) -> Iterator[tuple[str, int] | None]:
    """Run LiteLLM's proxy; yields its address and pid, None where it cannot be had."""
    home = folder / "litellm"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "litellm[proxy]"]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"LiteLLM: left out, it cannot be installed: {done.stderr.strip()[-200:]}")
        yield None
        return
    asked = {"model": "openai/m", "api_base": f"{base_url}/v1", "api_key": "none"}
    told = {"model_list": [{"model_name": "m", "litellm_params": asked}]}
    (folder / "litellm.json").write_text(json.dumps(told))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [home / "bin" / "litellm", "--config", folder / "litellm.json", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1"]
    with (
        (folder / "litellm.log").open("wb") as log,
        subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **LITELLM},
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process, folder / "litellm.log")
            yield url, process.pid
        finally:
            process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + 180
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"LiteLLM's proxy did not come: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
