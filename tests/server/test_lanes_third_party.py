"""Lanes against servers that others wrote, on loopback: aimock, LiteLLM's proxy, mock-ai-api.

They are installed when the drill runs, by npm and pip, and left out, with the reason, where that
fails. What they cannot do, `stand_in.py` does: mixed outcomes, expiry with partial results.
mock-ai-api leaves a batch "in progress" for ever, so only its purchase and its finding are tried.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchrouter import Client
from batchrouter.server.lanes.lane import Lane, LaneItem
from batchrouter.testing import FaultProxy, running_router
from server.stand_in import KEY
from server.test_lanes_whole import PRICE, artifact, assert_money_adds_up, buy, config, ended

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900), pytest.mark.xdist_group("third-party")]

AIMOCK = "@copilotkit/aimock@1.43.0"
LITELLM = "litellm[proxy]>=1.80"
MOCK_AI_API = "mock-ai-api==0.1.1"
READY_WITHIN_S = 180
DEARER = {"input_usd_per_mtok": "0.20", "output_usd_per_mtok": "0.80"}
DEAREST = {"input_usd_per_mtok": "0.30", "output_usd_per_mtok": "1.20"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)


def installed(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"{command[-1]} cannot be installed: {done.stderr.strip()[-300:]}")


def environment(folder: Path, package: str) -> Path:
    """An environment with one package; returns where its programs are."""
    venv.create(folder, with_pip=True)
    installed([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package])
    return folder / "bin"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def running(
    command: list[str], ready_url: str, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    log = folder / "server.log"
    kept = {name: value for name, value in os.environ.items() if "BATCHROUTER" not in name}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, stdout=out, stderr=out, env={**kept, **(env or {})}, start_new_session=True
        ) as process,
    ):
        try:
            give_up_at = time.monotonic() + READY_WITHIN_S
            while not answers(ready_url):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < give_up_at, log.read_text()[-2000:]
                time.sleep(0.3)
            yield
        finally:
            # They may have processes of their own.
            os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that runs OpenAI's files and batches; yields where it is."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no npm: aimock cannot be installed")
    folder = tmp_path_factory.mktemp("aimock")
    installed([npm, "install", "--silent", "--no-audit", "--prefix", str(folder), AIMOCK])
    answer = {"match": {}, "response": {"content": "an answer of aimock"}}
    (folder / "fixtures").mkdir()
    (folder / "fixtures" / "all.json").write_text(json.dumps({"fixtures": [answer]}))
    port = free_port()
    program = folder / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    command = [node, str(program), "-p", str(port), "-f", str(folder / "fixtures")]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/v1/batches", folder):
        yield url


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy with an answer of its own; yields where it is."""
    folder = tmp_path_factory.mktemp("litellm")
    programs = environment(folder / "venv", LITELLM)
    told = {"model": "openai/m", "mock_response": "an answer of LiteLLM", "api_key": "none"}
    settings = {"model_list": [{"model_name": "m", "litellm_params": told}]}
    (folder / "config.json").write_text(json.dumps(settings))
    port = free_port()
    command = [str(programs / "litellm"), "--config", str(folder / "config.json")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}"
    env = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(command, f"{url}/health/liveliness", folder, env):
        yield url


@pytest.fixture(scope="module")
def mock_ai_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that takes Anthropic's message batches; yields where it is."""
    folder = tmp_path_factory.mktemp("mock-ai-api")
    programs = environment(folder / "venv", MOCK_AI_API)
    port = free_port()
    command = [str(programs / "mock-ai-api"), "--anthropic-port", str(port)]
    command += ["--openai-port", str(free_port())]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/v1/messages/batches", folder):
        yield url


def lane(
    name: str, adapter: str, base_url: str, price: Mapping[str, str], capacity: int = 1000
) -> dict[str, Any]:
    options: dict[str, Any] = {"base_url": base_url, "api_key_env": "STAND_IN_KEY"}
    if adapter == "openai-batch":
        options["poll_s"] = 0.2
    return {
        "provider": name,
        "adapter": adapter,
        "region": "eu",
        "capacity_items": capacity,
        "models": [{"name": "m", **price, "tasks": ["responses"]}],
        "options": options if base_url else {},
    }


def contents(lines: list[dict[str, Any]]) -> Counter[str]:
    return Counter(line["output"]["choices"][0]["message"]["content"] for line in lines)


def test_a_batch_split_over_aimock_litellm_and_a_simulated_lane_is_merged(
    aimock: str, litellm: str, tmp_path: Path
) -> None:
    before = batch_count(aimock)
    served = config(
        lane("aimock", "openai-batch", f"{aimock}/v1", PRICE, capacity=20),
        lane("litellm", "openai-http", f"{litellm}/v1", DEARER, capacity=20),
        lane("simulated-m", "simulated", "", DEAREST, capacity=20),
    )
    with (
        running_router(tmp_path / "router", config=served) as router,
        Client(router.settings()) as client,
    ):
        batch_id = buy(client, [f"item {nth}" for nth in range(50)])
        batch = ended(client, batch_id)
        lines = artifact(client, batch_id)

    assert batch.state == "succeeded"
    assert [line["customer_item_id"] for line in lines] == [f"row-{nth}" for nth in range(50)]
    told = contents(lines)
    assert told["Mock batch completion"] == 20
    assert told["an answer of LiteLLM"] == 20
    assert Counter(line["provider"] for line in lines) == {
        "aimock": 20,
        "litellm": 20,
        "simulated-m": 10,
    }
    assert batch_count(aimock) == before + 1
    assert_money_adds_up(batch, lines)


def batch_count(aimock: str) -> int:
    return len(httpx.get(f"{aimock}/v1/batches?limit=100").json()["data"])


def test_a_purchase_at_aimock_whose_reply_is_lost_is_found_again(
    aimock: str, tmp_path: Path
) -> None:
    before = batch_count(aimock)
    with FaultProxy(aimock) as proxy:
        bought = lane("aimock", "openai-batch", f"{proxy.base_url}/v1", PRICE)
        bought["options"]["settle_s"] = 2
        dropped = proxy.drop_reply("POST", "/v1/batches")
        with (
            running_router(tmp_path / "router", config=config(bought)) as router,
            Client(router.settings()) as client,
        ):
            batch = ended(client, buy(client, ["one", "two", "three"]))

    assert dropped.matched == 1
    assert batch.counts.completed == 3
    assert batch_count(aimock) == before + 1


def test_a_purchase_at_mock_ai_api_whose_reply_is_lost_is_not_bought_again(
    mock_ai_api: str, proxy: FaultProxy, lane_of: Callable[..., Lane]
) -> None:
    url = f"{mock_ai_api}/v1/messages/batches"
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    before = len(httpx.get(url, headers=headers).json()["data"])
    proxy.upstream = mock_ai_api
    dropped = proxy.drop_reply("POST", "/v1/messages/batches")
    body = {"model": "ours", "messages": [{"role": "user", "content": "hello"}]}
    items = [LaneItem(nth, "/v1/chat/completions", json.dumps(body).encode(), 64) for nth in (0, 1)]
    bought = lane_of("anthropic-batch")

    handle = bought.submit("batch_0/0/0/1", items)
    ends_at = time.monotonic() + 5
    while time.monotonic() < ends_at:
        assert not bought.poll(handle).is_finished
        time.sleep(0.1)

    assert dropped.matched == 1
    assert len(httpx.get(url, headers=headers).json()["data"]) == before + 1
