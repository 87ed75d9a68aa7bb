"""A real Prefect: its server on SQLite, a work pool with a process worker, and what else is run.

Each is a process group of its own, and all of them surely end: by SIGTERM, then by SIGKILL.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

T = TypeVar("T")

POOL = "processes"
_PYTHON = sys.executable
_BIN = Path(_PYTHON).parent
PREFECT = [str(_BIN / "prefect")]
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "5",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PYTHONWARNINGS": "ignore",
}


def until(look: Callable[[], T | None], what: str, timeout_s: float = 120.0) -> T:
    """Look again and again until there is something, and return it."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        found = look()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come about within {timeout_s:g} s")


class Actor:
    """One process of the stage, in a group of its own."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.name, self._command, self._env, self._folder = name, command, dict(env), folder
        self.log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the whole group; what does not listen is killed after 15 s."""
        process, self._process = self._process, None
        if process is None:
            return
        for each in (how, signal.SIGKILL):
            try:
                os.killpg(process.pid, each)
            except ProcessLookupError:
                break
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                continue
        process.wait(15)
        with suppress(ProcessLookupError):  # what its leader left behind
            os.killpg(process.pid, signal.SIGKILL)

    def tail(self) -> str:
        return self.log_path.read_text("utf-8", errors="replace")[-3000:]


class Stage:
    """A running Prefect and what works for it. Use `running_stage`."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.port = _free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "BATCHROUT"))}
        self.env = {
            **kept,
            **_QUIET,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.api_url,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            **env,
        }
        self.actors: list[Actor] = []
        self.server = self.actor(
            "server",
            [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            PREFECT_API_URL="",
            PREFECT_UI_API_URL=self.api_url,
        )

    def actor(self, name: str, command: list[str], **env: str) -> Actor:
        """Describe a process; it ends with the stage."""
        wanted = {k: v for k, v in {**self.env, **env}.items() if v}
        made = Actor(name, command, wanted, self.folder)
        self.actors.append(made)
        return made

    def start_server(self) -> None:
        """Start it, or start it again on the same database, and wait until it answers."""
        self.server.start()

        def answers() -> bool:
            try:
                return httpx.get(f"{self.api_url}/health", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        try:
            until(answers, "the Prefect server", 280.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends:\n{self.server.tail()}") from None

    def run(
        self, *command: str, timeout_s: float = 180.0, cwd: Path | None = None, **env: str
    ) -> str:
        """Run one command of this environment to its end."""
        done = subprocess.run(
            [str(_BIN / command[0]), *command[1:]],
            env={**self.env, **env},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        return done.stdout

    @contextmanager
    def client(self) -> Generator[SyncPrefectClient]:
        with get_client(sync_client=True) as client:
            yield client

    def start_run(self, deployment: str, **parameters: Any) -> UUID:
        """Let a deployment run, and return the flow run's id."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            made = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        return made.id

    def flow_run(self, flow_run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(flow_run_id)

    def wait_for(self, flow_run_id: UUID, *states: str, timeout_s: float = 150.0) -> FlowRun:
        """Wait until a flow run is in one of these states; fail at once at another final one."""

        def look() -> FlowRun | None:
            found = self.flow_run(flow_run_id)
            name = found.state.name if found.state else ""
            if name in states:
                return found
            assert not (found.state and found.state.is_final()), (
                f"the flow run is {name}: {found.state and found.state.message}\n{self.logs()}"
            )
            return None

        try:
            return until(look, f"{' or '.join(states)} of {flow_run_id}", timeout_s)
        except AssertionError as error:
            now = self.flow_run(flow_run_id).state
            raise AssertionError(f"{error}; it is {now and now.name}\n{self.logs()}") from None

    def count(self, flow_run_id: UUID, state: str) -> int:
        """Count how often a flow run was in a state."""
        with self.client() as client:
            return sum(each.name == state for each in client.read_flow_run_states(flow_run_id))

    def pids_of(self, flow_run_id: UUID) -> list[int]:
        """List the processes that carry a flow run."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if (
                    entry.name.isdigit()
                    and f"{flow_run_id}".encode() in (entry / "environ").read_bytes()
                ):
                    found.append(int(entry.name))
        return found

    @staticmethod
    def command(name: str) -> list[str]:
        """Give the path of a program of this environment."""
        return [str(_BIN / name)]

    def logs(self) -> str:
        return "\n".join(f"--- {each.name}\n{each.tail()}" for each in self.actors[1:])


@contextmanager
def running_stage(folder: Path, **env: str) -> Generator[Stage]:
    """Run a Prefect server with a process worker while the block lasts.

    This process talks to it too: its settings are those of the stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(folder, env)
    try:
        stage.start_server()
        stage.run("prefect", "work-pool", "create", POOL, "--type", "process")
        worker = stage.actor("worker", [*PREFECT, "worker", "start", "--pool", POOL, "--name", "w"])
        worker.start()
        with temporary_settings({
            PREFECT_API_URL: stage.api_url,
            PREFECT_HOME: folder / "home",
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }):
            yield stage
    finally:
        for actor in reversed(stage.actors):
            actor.end()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
