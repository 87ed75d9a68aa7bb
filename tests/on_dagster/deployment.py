"""A real Dagster of its own: a code server, a daemon and a webserver as processes, on SQLite.

Everything lives in one folder and listens on a socket file or an ephemeral port. Each process is
the leader of a session of its own, so that it ends with all that it started, run workers and
steps included, whatever the test did.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

_T = TypeVar("_T")

_DAGSTER_YAML = """
telemetry: {{enabled: false}}
run_retries: {{enabled: true, max_retries: 0}}
run_monitoring: {{enabled: true, poll_interval_seconds: 5}}
concurrency: {{runs: {{max_concurrent_runs: {runs}}}}}
sensors: {{use_threads: true, num_workers: 2}}
nux: {{enabled: false}}
"""

_WORKER_PID = re.compile(r"process for run \(pid: (\d+)\)")
"""By Dagster's own words in the run's log."""

_START_S = 120.0
"""The machine of the tests may be busy: a code server alone takes ten seconds of CPU."""

_REPOSITORY = {"repositoryLocationName": "tests", "repositoryName": "__repository__"}


class Deployment:
    """Use `running_deployment`."""

    def __init__(self, folder: Path, definitions: Path, env: Mapping[str, str], runs: int) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (self.home / "dagster.yaml").write_text(_DAGSTER_YAML.format(runs=runs))
        self._workspace = folder / "workspace.yaml"
        # A socket's path may have a hundred bytes, and pytest's folders are deep.
        self._socket = Path("/tmp") / f"dagster-{os.getpid()}-{time.time_ns() % 10**9}.sock"
        self._workspace.write_text(
            "load_from:\n  - grpc_server:\n"
            f"      socket: {self._socket}\n      location_name: tests\n"
        )
        self._definitions = definitions
        kept = {key: value for key, value in os.environ.items() if "BATCHROUTER" not in key}
        self._env = {**kept, **env, "DAGSTER_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = 0
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    @property
    def url(self) -> str:
        """Where the webserver is."""
        return f"http://127.0.0.1:{self.port}"

    def start_all(self) -> None:
        """Start code server, daemon and webserver, and wait until they answer."""
        socket_path, definitions = str(self._socket), str(self._definitions)
        self._start("code", "dagster", "api", "grpc", "--socket", socket_path, "-f", definitions)
        self.wait_until(self._socket.exists, "the code server's socket", _START_S)
        self.start_daemon()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        address = ["-h", "127.0.0.1", "-p", str(self.port)]
        self._start("webserver", "dagster-webserver", *address, "-w", str(self._workspace))
        self.wait_until(self._answers, "the webserver", _START_S)

    def start_daemon(self) -> None:
        """Start the daemon; its sensors tick as soon as it has loaded the code location."""
        self._start("daemon", "dagster-daemon", "run", "-w", str(self._workspace))

    def kill(self, name: str) -> None:
        """End one of the processes and all that it started, as by a power cut."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def stop(self) -> None:
        """End everything."""
        for name in list(self._processes):
            self.kill(name)
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._socket.unlink(missing_ok=True)
        self.instance.dispose()

    def strays(self) -> list[int]:
        """Processes of this deployment that outlived their leader, by its own DAGSTER_HOME."""
        mark = f"DAGSTER_HOME={self.home}\0".encode()
        found: list[int] = []
        for each in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int(each.name) != os.getpid() and mark in (each / "environ").read_bytes():
                    found.append(int(each.name))
        return found

    def pids_of_run(self, run_id: str) -> dict[str, list[int]]:
        """The processes that work on a run: its worker, and the steps that the worker started."""
        found: dict[str, list[int]] = {"worker": [], "steps": []}
        for entry in self.instance.all_logs(run_id):
            event = entry.dagster_event
            told = _WORKER_PID.search(str(event.message)) if event is not None else None
            if told is not None and Path("/proc", told[1]).exists():
                found["worker"] = [int(told[1])]
        for pid in self.strays():
            with contextlib.suppress(OSError, ValueError):
                stat = Path("/proc", str(pid), "stat").read_text()
                command = Path("/proc", str(pid), "cmdline").read_bytes()
                if int(stat.rpartition(")")[2].split()[1]) in found["worker"]:
                    found["steps"] += [pid] if b"spawn_main" in command else []
        return found

    def _start(self, name: str, script: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name(script)), *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self.folder,
                start_new_session=True,
            )

    def log_of(self, name: str) -> str:
        """What a process printed, over all its lives."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def wait_until(self, ready: Callable[[], _T], what: str, timeout_s: float = 90.0) -> _T:
        """Wait until something is true, and return it."""
        give_up_at = time.monotonic() + timeout_s
        while not (value := ready()):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"the {name} ended:\n{self.log_of(name)[-3000:]}")
            if time.monotonic() > give_up_at:
                logs = "\n".join(f"== {n}\n{self.log_of(n)[-1500:]}" for n in self._processes)
                raise AssertionError(f"{what} did not come within {timeout_s:.0f} s\n{logs}")
            time.sleep(0.5)
        return value

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask the webserver."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.loads(reply.read())
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(
        self, *keys: str, partition: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Launch a run as the UI does; return its id."""
        given = {**(tags or {})} | ({"dagster/partition": partition} if partition else {})
        data = self.graphql(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message }
                ... on InvalidSubsetError { message }
            } }""",
            params={
                "selector": {
                    **_REPOSITORY,
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": key.split("/")} for key in keys],
                },
                "runConfigData": {},
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in given.items()]
                },
            },
        )["launchRun"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def backfill(self, *keys: str, partitions: list[str]) -> str:
        """Launch a backfill as the UI does; return its id."""
        data = self.graphql(
            """mutation($params: LaunchBackfillParams!) {
                launchPartitionBackfill(backfillParams: $params) {
                    __typename
                    ... on LaunchBackfillSuccess { backfillId }
                    ... on PythonError { message }
            } }""",
            params={
                "assetSelection": [{"path": key.split("/")} for key in keys],
                "partitionNames": partitions,
            },
        )["launchPartitionBackfill"]
        assert data["__typename"] == "LaunchBackfillSuccess", data
        return str(data["backfillId"])

    def backfill_status(self, backfill_id: str) -> str:
        backfill = self.instance.get_backfill(backfill_id)
        return backfill.status.value if backfill is not None else ""

    def terminate(self, run_id: str) -> None:
        """Terminate a run as the UI does."""
        data = self.graphql(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id
        )["terminateRun"]
        assert data["__typename"] == "TerminateRunSuccess", data

    def set_cursor(self, sensor: str, cursor: str | None) -> None:
        """Give a sensor another cursor, as the UI does."""
        data = self.graphql(
            """mutation($selector: SensorSelector!, $cursor: String) {
                setSensorCursor(sensorSelector: $selector, cursor: $cursor) { __typename } }""",
            selector={
                "repositoryLocationName": "tests",
                "repositoryName": "__repository__",
                "sensorName": sensor,
            },
            cursor=cursor,
        )["setSensorCursor"]
        assert data["__typename"] == "Sensor", data

    def events_of(self, run_id: str) -> list[dg.DagsterEvent]:
        """What Dagster's log says of a run."""
        logs = self.instance.all_logs(run_id)
        return [each.dagster_event for each in logs if each.dagster_event is not None]

    def step_times(self, step: str) -> list[tuple[float, float]]:
        """When the runs of a step began and ended, in seconds of the epoch, oldest first."""
        times: list[tuple[float, float]] = []
        for run in self.instance.get_runs():
            times += [
                (each.start_time, each.end_time)
                for each in self.instance.get_run_step_stats(run.run_id, [step])
                if each.start_time and each.end_time
            ]
        return sorted(times)

    def ticks_since(self, sensor: str, epoch_s: float) -> list[str]:
        """How a sensor's ticks that began after a time have ended, newest first."""
        for state in self.instance.all_instigator_state():
            if state.instigator_name == sensor:
                ticks = self.instance.get_ticks(
                    state.instigator_origin_id, state.selector_id, after=epoch_s
                )
                return [each.status.value for each in ticks if each.status.value != "STARTED"]
        return []

    def run(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def wait_for_run(self, run_id: str, timeout_s: float = 120.0) -> dg.DagsterRunStatus:
        """Wait until a run has ended; return how."""
        self.wait_until(lambda: self.run(run_id).is_finished, f"the end of run {run_id}", timeout_s)
        return self.run(run_id).status

    def materialized(self, key: str) -> set[str | None]:
        """The partitions of an asset that are materialized; {None} without partitions."""
        asset_key = dg.AssetKey(key.split("/"))
        records = self.instance.fetch_materializations(asset_key, limit=1000).records
        return {each.partition_key for each in records}

    def statuses_at_rest(self) -> list[tuple[str, str]]:
        """(Assets, status) of all runs, oldest first, once none is under way."""
        self.wait_until(
            lambda: all(run.is_finished for run in self.instance.get_runs()), "rest", 300
        )
        return [
            (
                ",".join(sorted(key.to_user_string() for key in run.asset_selection or ())),
                run.status.value,
            )
            for run in reversed(self.instance.get_runs())
        ]


@contextlib.contextmanager
def running_deployment(
    folder: Path, definitions: Path, env: Mapping[str, str], *, max_concurrent_runs: int = 2
) -> Iterator[Deployment]:
    """Run a Dagster while the block lasts; its folder stays, for its logs."""
    deployment = Deployment(folder, definitions, env, max_concurrent_runs)
    try:
        deployment.start_all()
        yield deployment
    finally:
        deployment.stop()
