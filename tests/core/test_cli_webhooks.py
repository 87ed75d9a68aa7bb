"""Waiting by webhook alone, from the shell: router, receiver and run are three processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchrouter.cli import demo as demo_module
from batchrouter.testing import FaultProxy, running_router

BATCHROUTER = str(Path(sys.executable).with_name("batchrouter"))
BUNDLED = Path(demo_module.__file__).with_name("demo_data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tickets.jsonl", "job.yaml"):
        (tmp_path / name).write_bytes((BUNDLED / name).read_bytes())
    return tmp_path


@pytest.fixture
def receiver_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_listening(port: int, process: subprocess.Popen) -> None:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the receiver does not listen")


def test_a_run_ends_by_webhook_alone_and_never_asks(folder: Path, receiver_port: int) -> None:
    secret = subprocess.run(
        [BATCHROUTER, "webhooks", "secret"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    command = [BATCHROUTER, "run", "job.yaml", "--run-key", "1", "--json"]
    with running_router() as router, FaultProxy(router.base_url) as proxy:
        environment = dict(os.environ) | {
            "BATCHROUTER_BASE_URL": proxy.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            "BATCHROUTER_INBOX_URL": "sqlite:///inbox.db",
            "BATCHROUTER_WEBHOOK_URL": f"http://127.0.0.1:{receiver_port}/hook",
            "BATCHROUTER_WEBHOOK_SECRET": secret,
        }
        receiver = subprocess.Popen(
            [BATCHROUTER, "webhooks", "serve", "--port", str(receiver_port)],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until_listening(receiver_port, receiver)
            done = subprocess.run(
                [*command, "--wait", "webhook", "--timeout", "90"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            receiver.send_signal(signal.SIGINT)
            _, said = receiver.communicate(timeout=30)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["succeeded"] == 72
    assert proxy.count("GET", "/v1/batches") == 0, "the list was never asked for"
    assert f"http://127.0.0.1:{receiver_port}" in said
    assert secret not in said + done.stdout + done.stderr
    assert "Traceback" not in said


def test_waiting_for_webhooks_without_an_inbox_is_refused_before_anything(folder: Path) -> None:
    done = subprocess.run(
        [BATCHROUTER, *["run", "job.yaml", "--run-key", "1", "--wait", "webhook"]],
        cwd=folder,
        env=dict(os.environ)
        | {"BATCHROUTER_API_KEY": "bk_live_x", "BATCHROUTER_BASE_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "BATCHROUTER_INBOX_URL" in done.stderr


def test_an_interrupted_run_says_so_and_the_same_command_goes_on(folder: Path) -> None:
    command = [BATCHROUTER, *["run", "job.yaml", "--run-key", "1", "--json"]]
    with running_router() as router, FaultProxy(router.base_url) as proxy:
        environment = dict(os.environ) | {
            "BATCHROUTER_BASE_URL": proxy.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            "BATCHROUTER_POLL_INTERVAL_S": "0.2",
        }
        proxy.delay("POST", "/v1/batches", seconds_s=20)
        first = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        proxy.wait_for("POST", "/v1/batches", timeout_s=60)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=60)

        again = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    assert first.returncode == 130
    assert b"the same command goes on" in said
    assert b"Traceback" not in said
    assert again.returncode == 0, again.stderr
    receipt = json.loads(again.stdout)
    assert (receipt["batch_count"], receipt["rows"]["succeeded"]) == (1, 72)
