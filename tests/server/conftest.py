"""The router's surface on a real socket, in this process; batches queue, and tests end them."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from batchrouter.server.app import AppSettings, create_app
from batchrouter.server.batches import ledger, states
from batchrouter.server.config import RouterConfig, load_config
from batchrouter.server.lanes.lane import Lane
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.keys import create_key
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.tables import chunks
from batchrouter.testing import FaultProxy
from server.stand_in import KEY, StandIn

REFERENCE_QUOTE = {
    "models": ["gpt-4o-mini", "claude-haiku-4"],
    "task": "responses",
    "estimated_items": 50000,
    "routing_mode": "cheapest",
    "privacy_tier": "standard",
    "allowed_regions": ["global"],
}


class Surface:
    """A running router without an engine, and short ways to use it."""

    def __init__(self, base_url: str, services: Services) -> None:
        self.base_url = base_url
        self.services = services
        self.api_key = self.mint()
        self.client = self.client_for(self.api_key)

    def mint(self, scopes: str = "quote,submit,read,cancel", workspace: str = "default") -> str:
        with self.services.database.writing() as conn:
            return create_key(
                conn,
                workspace=workspace,
                scopes=scopes.split(","),
                label="test",
                initial_credits_micro=self.services.config.credits.initial_micro,
            )

    def client_for(self, key: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30)

    def quote(self, **changes: Any) -> dict[str, Any]:
        body = {**REFERENCE_QUOTE, "estimated_items": 100, **changes}
        reply = self.client.post("/v1/quotes/model", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def upload(self, content: bytes | None = None, *, items: int = 3) -> dict[str, Any]:
        data = manifest(items) if content is None else content
        reply = self.post_manifest(data)
        assert reply.status_code == 201, reply.text
        return reply.json()

    def post_manifest(self, content: bytes, filename: str = "m.jsonl") -> httpx.Response:
        return self.client.post("/v1/batches/input-manifests", files={"file": (filename, content)})

    def submit(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post("/v1/batches", json=body, headers=headers)

    def buy(self, items: int = 3, **more: Any) -> dict[str, Any]:
        reply = self.submit(
            quote_id=self.quote()["quote_id"],
            input_file_id=self.upload(items=items)["file_id"],
            **more,
        )
        assert reply.status_code == 202, reply.text
        return reply.json()

    def settle(self, batch_id: str, *, completed: int, failed: int, cost_units: int) -> None:
        """Do what a worker does with a batch of one chunk."""
        database = self.services.database
        with database.writing() as conn:
            states.move(conn, batch_id, "routing")
            states.move(conn, batch_id, "running")
            conn.execute(
                chunks.insert().values(
                    batch_id=batch_id,
                    number=0,
                    lane_position=0,
                    first_item=0,
                    item_count=completed + failed,
                    byte_start=0,
                    byte_end=1,
                    state="planned",
                    updated_at=now_us(),
                )
            )
            assert ledger.claim_chunk(conn, batch_id, 0, cost_units)
            outcome = ledger.ChunkOutcome(
                "done", completed, failed, input_tokens=30, output_tokens=12, cost_units=cost_units
            )
            assert ledger.settle_chunk(conn, batch_id, 0, outcome)

    def finish(self, batch_id: str, to: Any, content: bytes = b'{"a":1}\n{"b":2}\n') -> None:
        key = f"artifacts/{batch_id}.jsonl"
        self.services.objects.put(key, [content])
        artifact = states.Artifact(
            key, len(content), hashlib.sha256(content).hexdigest(), now_us() + 10**12
        )
        with self.services.database.writing() as conn:
            if to == "succeeded":
                states.move(conn, batch_id, "finalizing")
            assert states.finish(conn, batch_id, to, artifact=artifact)

    def stored(self) -> list[str]:
        root = self.services.folder.objects
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def manifest(items: int, **changes: Any) -> bytes:
    lines = [
        {
            "customer_item_id": f"row-{number}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": f"Is card {number} late?"}]},
            **changes,
        }
        for number in range(items)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def make_manifest() -> Callable[..., bytes]:
    return manifest


@contextlib.contextmanager
def running(settings: AppSettings, listener: socket.socket, base_url: str) -> Iterator[Surface]:
    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(app, access_log=False, log_config=None, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    surface = Surface(base_url, app.state.services)
    try:
        with surface.client:
            yield surface
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def open_surface(tmp_path: Path) -> Iterator[Callable[..., Surface]]:
    """Start routers with changes to the default configuration, such as `limits={...}`."""
    with contextlib.ExitStack() as stack:

        def start(
            data_dir: Path | None = None, *, is_loopback: bool = True, **changes: Any
        ) -> Surface:
            base = load_config().model_dump(mode="json")
            config = RouterConfig.model_validate({**base, **changes})
            listener = socket.create_server(("127.0.0.1", 0))
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            settings = AppSettings(
                data_dir or tmp_path / "data",
                config,
                public_url=base_url,
                is_loopback=is_loopback,
                runs_batches=False,
            )
            return stack.enter_context(running(settings, listener, base_url))

        yield start


@pytest.fixture
def surface(open_surface: Callable[..., Surface]) -> Surface:
    return open_surface()


@pytest.fixture
def provider() -> Iterator[StandIn]:
    """A provider whose behaviour a test sets."""
    with StandIn() as running:
        yield running


@pytest.fixture
def proxy(provider: StandIn) -> Iterator[FaultProxy]:
    """A proxy before that provider."""
    with FaultProxy(provider.origin) as running:
        yield running


@pytest.fixture
def lane_of(
    tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Lane]]:
    """Open a lane of an adapter; a second call opens it as a process does that comes after."""
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    database = Database.open(tmp_path / "router.db")
    registries: list[LaneRegistry] = []

    def open_lane(adapter: str, **options: Any) -> Lane:
        path = "/v1" if adapter.startswith("openai") else ""
        lane = {
            "provider": "acme",
            "adapter": adapter,
            "region": "eu",
            "capacity_items": 1000,
            "models": [{"name": "m", "input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}],
            "options": {
                "base_url": f"{proxy.base_url}{path}",
                "api_key_env": "STAND_IN_KEY",
                "poll_s": 0.02,
                "timeout_s": 5,
                "settle_s": 0.4,
            }
            | options,
        }
        config = RouterConfig.model_validate({"lanes": [lane]})
        objects = Objects.local(tmp_path / "objects")
        registry = LaneRegistry(config, tmp_path / "memory", database, objects)
        registries.append(registry)
        found = registry.find("acme", "m")
        assert found is not None
        return found

    yield open_lane
    for registry in registries:
        registry.close()
    database.close()
