"""What comes back from the router broken or forged: not believed, and the run ends all the same."""

import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import RECEIVER_KILL_POINTS, FaultProxy, RunningRouter, running_router
from batchrouter.webhooks.inbox import open_inbox
from batchrouter.webhooks.signing import mint_secret, sign
from crash.desk import wait_until
from crash.mistake import NO_ANSWER, NO_TABLE, ROWS, Mistake, mistake
from crash.scenario import BATCHROUTER, SIGKILLED

ARTIFACTS = "/artifacts/*"


@pytest.fixture(scope="module")
def front() -> Iterator[FaultProxy]:
    with FaultProxy() as listening:
        yield listening


@pytest.fixture(scope="module")
def router(front: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    data_dir = tmp_path_factory.mktemp("router")
    with running_router(data_dir, public_url=front.base_url) as running:
        front.upstream = running.base_url
        yield running


@pytest.fixture
def proxy(front: FaultProxy) -> FaultProxy:
    front.forget_rules()
    return front


@pytest.fixture
def bad(router: RunningRouter, proxy: FaultProxy, tmp_path: Path) -> Mistake:
    return mistake(tmp_path, router, proxy.base_url)


def killed_at(bad: Mistake, point: str) -> None:
    killed = bad.cli("run", BATCHROUTER_KILL_AT=point)
    assert killed.returncode == SIGKILLED, killed.stderr


def test_an_artifact_that_is_cut_short_is_gone_on_with(bad: Mistake, proxy: FaultProxy) -> None:
    asked = proxy.count("GET", ARTIFACTS)
    proxy.truncate("GET", ARTIFACTS, after_bytes=700, times=2)

    assert bad.succeeds()["rows"]["succeeded"] == ROWS
    assert proxy.count("GET", ARTIFACTS) == asked + 3


def test_an_artifact_url_that_is_refused_is_signed_anew(bad: Mistake, proxy: FaultProxy) -> None:
    proxy.answer("GET", ARTIFACTS, status=403)

    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_an_artifact_of_other_bytes_is_not_landed(
    bad: Mistake, router: RunningRouter, proxy: FaultProxy
) -> None:
    killed_at(bad, "download.before")
    stored = max(
        (router.data_dir).rglob("artifacts/*.jsonl"), key=lambda path: path.stat().st_mtime_ns
    )
    whole = stored.read_bytes()
    stored.write_bytes(whole.replace(b"card", b"fees"))

    bad.fails(NO_ANSWER, "sha256", "nothing was kept", command="land", bought=1)
    assert not [*bad.runs.glob("*/*/artifact/*")]

    stored.write_bytes(whole)
    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_an_artifact_that_is_another_file_altogether(bad: Mistake, proxy: FaultProxy) -> None:
    killed_at(bad, "download.before")
    proxy.answer("GET", ARTIFACTS, status=200, body=b"<html>maintenance</html>" * 9, times=99)

    bad.fails(NO_ANSWER, "bytes", command="land", bought=1, BATCHROUTER_MAX_ATTEMPTS="2")

    proxy.forget_rules()
    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_a_damaged_copy_whose_artifact_has_expired(bad: Mistake, proxy: FaultProxy) -> None:
    killed_at(bad, "landing.before_write")
    copy = next(bad.runs.glob("*/*/artifact/*"))
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    gone = b'{"error": {"code": "artifact_expired", "message": "it was kept 30 days"}}'
    proxy.answer("GET", "/v1/batches/*/artifact-url", status=410, body=gone)

    bad.fails(NO_TABLE, "damaged", f"restore {copy.name}", "Nothing was landed", bought=1)

    copy.write_bytes(whole)
    bad.succeeds()


class Receiver:
    """`batchrouter webhooks serve` in a process of its own, and its inbox."""

    def __init__(
        self, root: Path, env: Mapping[str, str] | None = None, secret: str | None = None
    ) -> None:
        self.secret = secret or mint_secret()
        self.inbox_url = f"sqlite:///{root / 'inbox.db'}"
        command = [*BATCHROUTER, "webhooks", "serve", "--inbox", self.inbox_url, "--port", "0"]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {}), "BATCHROUTER_WEBHOOK_SECRET": self.secret},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        first = self._process.stderr.readline()
        self.url = "http://" + first.split("http://")[1].split()[0] + "/"

    def wait_for_death(self) -> int:
        """Wait until it has died by itself; gives its exit status."""
        self._process.communicate(timeout=60)
        return self._process.returncode

    def types_of(self, batch_id: str) -> list[str]:
        """The types of a batch's events in the inbox."""
        events, _ = open_inbox(self.inbox_url).events_since(None)
        return [event.type for event in events if event.batch_id == batch_id]

    def stop(self) -> str:
        """Stop it; gives what it said."""
        self._process.terminate()
        _, told = self._process.communicate(timeout=20)
        return told

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        request = urllib.request.Request(self.url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code

    @property
    def events(self) -> list[str]:
        return [event.id for event in open_inbox(self.inbox_url).events_since(None)[0]]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    running = Receiver(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("point", RECEIVER_KILL_POINTS)
def test_a_receiver_that_dies_loses_no_event(
    router: RunningRouter, tmp_path: Path, point: str
) -> None:
    """Its successor gets the delivery again, and knows whether it was kept."""
    dies = Receiver(tmp_path, env={"BATCHROUTER_KILL_AT": point})
    with FaultProxy(dies.url.rstrip("/")) as between, Client(router.settings()) as client:
        quote = client.quote_model("gpt-4o-mini", estimated_items=1)
        item = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Say hello"}}
        hook = {"url": between.base_url, "secret": dies.secret}
        order = {"quote_id": quote.quote_id, "items": [item]}
        batch_id = client.submit_batch(order, webhook=hook).id
        assert dies.wait_for_death() == SIGKILLED
        successor = Receiver(tmp_path, secret=dies.secret)
        try:
            between.upstream = successor.url.rstrip("/")
            wait_until(lambda: len(successor.types_of(batch_id)) == 2, within_s=90)
        finally:
            successor.stop()

    assert sorted(successor.types_of(batch_id)) == ["batch.completed", "batch.submitted"]


def event(event_id: str, created_at_s: float) -> bytes:
    data: dict[str, Any] = {"batch_id": "batch_" + "0" * 32, "state": "succeeded"}
    told = {"id": event_id, "type": "batch.completed", "created": int(created_at_s), "data": data}
    return json.dumps(told).encode()


def test_only_what_is_signed_and_fresh_reaches_the_inbox(receiver: Receiver) -> None:
    now = time.time()
    names = ["forged", "bare", "stale", "changed", "true"]
    bodies = {name: event(f"evt_{hashlib.md5(name.encode()).hexdigest()}", now) for name in names}
    ids = {name: json.loads(body)["id"] for name, body in bodies.items()}

    def signed(name: str, secret: str = receiver.secret, at: float = now) -> dict[str, str]:
        return sign(secret, bodies[name], event_id=ids[name], timestamp=int(at))

    assert receiver.post(bodies["forged"], signed("forged", secret=mint_secret())) == 401
    assert receiver.post(bodies["bare"], {"Content-Type": "application/json"}) == 401
    assert receiver.post(bodies["stale"], signed("stale", at=now - 3600)) == 401
    assert receiver.post(bodies["changed"] + b" ", signed("changed")) == 401
    assert receiver.events == []

    assert receiver.post(bodies["true"], signed("true")) == 204
    assert receiver.post(bodies["true"], signed("true")) == 204, "a replay is known, and kept once"
    assert receiver.events == [ids["true"]]


def test_a_run_whose_deliveries_are_not_believed_ends_by_polling(
    bad: Mistake, receiver: Receiver
) -> None:
    receipt = bad.succeeds(
        BATCHROUTER_INBOX_URL=receiver.inbox_url,
        BATCHROUTER_WEBHOOK_URL=receiver.url,
        BATCHROUTER_WEBHOOK_SECRET=mint_secret(),
    )

    assert receipt["rows"]["succeeded"] == ROWS
    assert receiver.events == []
    told = receiver.stop()
    assert "whsec_" not in told
