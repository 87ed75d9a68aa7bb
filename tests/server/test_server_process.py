"""The router as a process: first start, logs, signals, kills around every side effect."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import httpx
import pytest

ITEM = {
    "customer_item_id": "a",
    "operation": "responses",
    "input": {"messages": [{"role": "user", "content": "a prompt that no log may hold"}]},
}
KILL_POINTS = [
    "objects.before_commit",
    "objects.after_commit",
    "files.before_commit",
    "files.after_commit",
    "quotes.before_commit",
    "quotes.after_commit",
    "create.before_commit",
    "create.after_commit",
]
CANCEL_POINTS = ["cancel.before_commit", "cancel.after_commit"]


class Process:
    def __init__(self, data, *arguments, kill_at=None):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if kill_at:
            environment["BATCHROUTER_KILL_AT"] = kill_at
        self.errors = (data.parent / f"errors-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "batchrouter.server",
                "--data",
                str(data),
                "--port",
                "0",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if "listening on" in line:
                break
        self.base_url = self.said[-1].split()[-1]
        key = (data / "api_key").read_text().strip()
        self.client = httpx.Client(
            base_url=self.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=20
        )

    def log(self):
        self.errors.seek(0)
        return self.errors.read()

    def wait(self):
        return self.process.wait(20)

    def close(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()
        self.errors.close()


@contextlib.contextmanager
def started(data, *arguments, **more):
    process = Process(data, *arguments, **more)
    try:
        yield process
    finally:
        process.close()


def quote(process):
    body = {"model": "gpt-4o-mini", "estimated_items": 10}
    return process.client.post("/v1/quotes/model", json=body).json()["quote_id"]


def upload(process):
    content = json.dumps(ITEM).encode()
    reply = process.client.post("/v1/batches/input-manifests", files={"file": ("m", content)})
    return reply.json()["file_id"]


def ended(process, batch_id):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        batch = process.client.get(f"/v1/batches/{batch_id}").json()
        if batch["completed_at"]:
            return batch
        time.sleep(0.05)
    raise AssertionError(f"still {batch['state']}")


def test_the_first_start_mints_a_key_and_says_how_to_use_it(tmp_path):
    data = tmp_path / "data"
    with started(data) as first:
        said = "".join(first.said)
        key = (data / "api_key").read_text().strip()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [data, *data.iterdir()]}
        assert (data / "address").read_text().strip() == first.base_url
        assert first.client.get("/readyz").json() == {"status": "ready"}
    with started(data) as second:
        assert (data / "api_key").read_text().strip() == key
        assert second.client.get("/v1/batches").status_code == 200
        assert len(second.said) == 1

    assert re.fullmatch(r"bk_live_[A-Za-z0-9_-]{43}", key)
    assert f"export BATCHROUTER_API_KEY=$(cat {data}/api_key)" in said
    assert key not in said
    assert {mode & 0o077 for mode in modes.values()} == {0}
    assert modes["api_key"] == 0o600


def test_logs_are_json_lines_without_keys_prompts_or_signatures(tmp_path):
    with started(tmp_path / "data") as process:
        webhook = {"url": "http://127.0.0.1:9/hook", "secret": "whsec_never_in_a_log"}
        body = {"quote_id": quote(process), "items": [ITEM], "webhook": webhook}
        reply = process.client.post("/v1/batches", json=body, headers={"X-Request-Id": "mine"})
        assert reply.status_code == 202, reply.text
        batch = ended(process, reply.json()["id"])
        url = process.client.get(f"/v1/batches/{batch['id']}/artifact-url").json()["url"]
        assert httpx.get(url).status_code == 200
        process.process.terminate()
        process.wait()
        log = process.log()

    entries = [json.loads(line) for line in log.splitlines()]
    (created,) = [entry for entry in entries if entry.get("request_id") == "mine"]
    assert (created["method"], created["path"], created["status"]) == ("POST", "/v1/batches", 202)
    assert created["ms"] > 0
    for secret in ("bk_live", "never_in_a_log", "signature", "a prompt that", "?"):
        assert secret not in log


def test_sigterm_ends_it_gracefully(tmp_path):
    with started(tmp_path / "data") as process:
        process.process.send_signal(signal.SIGTERM)

        assert process.wait() == 0
        assert '"message": "stopped"' in process.log()


def test_a_second_router_on_the_folder_is_refused(tmp_path):
    with started(tmp_path / "data"):
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "batchrouter.server",
                "--data",
                str(tmp_path / "data"),
                "--port",
                "0",
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert second.returncode == 2
    assert "another router serves" in second.stderr


def test_an_address_that_others_can_reach_needs_its_flag(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "batchrouter.server", "--data", str(tmp_path), "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "--allow-public-host" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_told(tmp_path):
    with started(tmp_path / "data") as process:
        port = process.base_url.rsplit(":", 1)[-1]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "batchrouter.server",
                "--data",
                str(tmp_path / "b"),
                "--port",
                port,
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 2
    assert "Address already in use" in done.stderr


@pytest.mark.drill
@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_at_any_point_a_repeat_buys_once_and_nothing_is_left_over(tmp_path, point):
    data = tmp_path / "data"
    headers = {"Idempotency-Key": "bought-exactly-once"}
    with started(data):
        pass
    body = None
    with (
        started(data, kill_at=point) as process,
        contextlib.suppress(httpx.TransportError, KeyError),
    ):
        body = {"quote_id": quote(process), "input_file_id": upload(process)}
        process.client.post("/v1/batches", json=body, headers=headers)
    assert process.process.returncode == -signal.SIGKILL

    with started(data) as process:
        if body is None:
            # Neither a quote nor an upload costs anything: they are simply made again.
            body = {"quote_id": quote(process), "input_file_id": upload(process)}
        reply = process.client.post("/v1/batches", json=body, headers=headers)
        assert reply.status_code == 202, reply.text
        assert ("Idempotent-Replayed" in reply.headers) == (point == "create.after_commit")
        batch = ended(process, reply.json()["id"])
        listed = process.client.get("/v1/batches").json()["data"]
        names = {path.name for path in (data / "objects" / "manifests").iterdir()}

    assert (batch["state"], batch["counts"]["completed"]) == ("succeeded", 1)
    assert [one["id"] for one in listed] == [batch["id"]]
    kept = 2 if point == "files.after_commit" else 1
    assert len(names) == kept
    assert not any("#" in name for name in names)


@pytest.mark.drill
@pytest.mark.parametrize("point", CANCEL_POINTS)
def test_killed_while_cancelling_the_next_start_knows(tmp_path, point):
    data = tmp_path / "data"
    slow = tmp_path / "slow.toml"
    slow.write_text(
        """
[[lanes]]
provider = "simulated-slow"
region = "global"
capacity_items = 1000
models = [{ name = "gpt-4o-mini", input_usd_per_mtok = "0.1", output_usd_per_mtok = "0.1" }]
options = { latency_s = 3 }
"""
    )
    with started(data, "--config", str(slow), kill_at=point) as process:
        body = {"quote_id": quote(process), "input_file_id": upload(process)}
        batch_id = process.client.post("/v1/batches", json=body).json()["id"]
        with pytest.raises(httpx.TransportError):
            process.client.post(f"/v1/batches/{batch_id}/cancel")
    assert process.wait() == -signal.SIGKILL

    with started(data, "--config", str(slow)) as process:
        batch = ended(process, batch_id)

    if point == "cancel.before_commit":
        assert batch["state"] == "succeeded"
    else:
        # What a provider had already may have completed (contract section 5).
        assert batch["state"] in {"cancelled", "succeeded"}
