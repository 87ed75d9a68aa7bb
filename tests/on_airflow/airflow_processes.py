"""A real Airflow in processes of its own: scheduler, triggerer, dag-processor, api-server.

SQLite, LocalExecutor, an AIRFLOW_HOME and a free port of its own; each process is the leader of
its own group, and all of them surely end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PROCESSES = ("api-server", "scheduler", "dag-processor", "triggerer")
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class Airflow:
    """Not started yet; end it with `stop`, whatever happens.

    Attributes:
        home: Its AIRFLOW_HOME; `dags` below it is where DAG files go before it starts.
        base_url: Of its api-server.
    """

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self.port = _free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        (home / "dags").mkdir(parents=True, exist_ok=True)
        self.env = {**_environment(home, self.port, self.base_url), **env}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""

    def start(self) -> None:
        self._airflow("db", "migrate")
        for name in PROCESSES:
            self.start_process(name)
        self.wait_until(self._is_healthy, 300, "Airflow to be healthy")
        self._token = self._call("GET", "/auth/token", token=False)["access_token"]

    def start_process(self, name: str) -> None:
        log = (self.home / f"{name}.log").open("ab")
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", "airflow", name],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=self.home,
        )
        log.close()

    def kill_process(self, name: str) -> None:
        """SIGKILL a process and all that it started."""
        process = self._running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def stop(self) -> None:
        """End everything: politely, then surely."""
        groups = {name: process.pid for name, process in self._running.items()}
        below = [pid for group in groups.values() for pid in descendants(group)]
        for pid in groups.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
        give_up_at = time.monotonic() + 15
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, give_up_at - time.monotonic()))
        for pid in groups.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in below:  # tasks lead groups of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._running.values():
            process.wait(10)

    def task_processes(self, word: str) -> list[int]:
        """The pids below the scheduler whose command line has a word in it."""
        found: list[int] = []
        for pid in descendants(self._running["scheduler"].pid):
            with suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(pid)
        return found

    def pid_of(self, name: str) -> int:
        return self._running[name].pid

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, logical_date: str | None = None
    ) -> str:
        """Start a DAG through the REST API, as soon as it is known; return the run's id."""
        self.wait_until(
            lambda: self._get(f"/api/v2/dags/{dag_id}") is not None, 90, f"DAG {dag_id}"
        )
        body = {"logical_date": logical_date, "conf": dict(conf or {})}
        return self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        told = self._get(f"/api/v2/dags/{dag_id}/dagRuns")
        return told["dag_runs"] if told else []

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        told = self.call("GET", f"{_run(dag_id, run_id)}/taskInstances?limit=1000")
        return told["task_instances"]

    def state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str | None:
        for each in self.tasks(dag_id, run_id):
            if each["task_id"] == task_id and each["map_index"] == map_index:
                return each["state"]
        return None

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, state: str, timeout_s: float = 90
    ) -> None:
        def reached() -> bool:
            now = self.state(dag_id, run_id, task_id)
            if now in ENDED and now != state:
                raise AssertionError(
                    f"{dag_id}.{task_id} is {now}, not {state}:\n"
                    f"{self.logs(dag_id, run_id, task_id)}"
                )
            return now == state

        self.wait_until(reached, timeout_s, f"{dag_id}.{task_id} to be {state}")

    def wait_for_run(
        self, dag_id: str, run_id: str, state: str = "success", timeout_s: float = 120
    ) -> None:
        def reached() -> bool:
            now = self.call("GET", _run(dag_id, run_id))["state"]
            if now in {"success", "failed"} and now != state:
                told = [
                    f"{each['task_id']} {each['state']}\n"
                    f"{self.logs(dag_id, run_id, each['task_id'])}"
                    for each in self.tasks(dag_id, run_id)
                ]
                raise AssertionError(f"run {run_id} of {dag_id} is {now}\n" + "\n".join(told))
            return now == state

        self.wait_until(reached, timeout_s, f"run {run_id} of {dag_id} to be {state}")

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", f"{path}?deserialize=true")["value"]

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}"
        self.call("PATCH", path, {"new_state": state})

    def logs(self, dag_id: str, run_id: str, task_id: str) -> str:
        """The end of all of a task's log files."""
        found = sorted(self.home.glob(f"logs/dag_id={dag_id}/run_id=*/task_id={task_id}/**/*.log*"))
        mine = [each for each in found if run_id in str(each)]
        return "\n".join(each.read_text(errors="replace")[-6_000:] for each in mine)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, path, body)

    def wait_until(self, is_so: Any, timeout_s: float, what: str) -> None:
        give_up_at = time.monotonic() + timeout_s
        while not is_so():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise AssertionError(f"{name} has ended:\n{self._tail(name)}")
            if time.monotonic() > give_up_at:
                tails = "\n".join(f"== {name}\n{self._tail(name)}" for name in self._running)
                raise AssertionError(f"waited {timeout_s} s for {what}\n{tails}")
            time.sleep(0.3)

    def _tail(self, name: str) -> str:
        path = self.home / f"{name}.log"
        return path.read_text(errors="replace")[-3_000:] if path.exists() else ""

    def _is_healthy(self) -> bool:
        try:
            told = self._call("GET", "/api/v2/monitor/health", token=False)
        except (OSError, ValueError):
            return False
        names = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((told.get(name) or {}).get("status") == "healthy" for name in names)

    def _get(self, path: str) -> Any:
        try:
            return self._call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _call(self, method: str, path: str, body: Any = None, *, token: bool = True) -> Any:
        request = urllib.request.Request(
            self.base_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if token and self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=90) as reply:
                return json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                error.add_note(error.read().decode(errors="replace")[:2_000])
            raise

    def _airflow(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3_000:] + done.stdout[-3_000:]


def connection(**fields: Any) -> dict[str, str]:
    """The default connection as an environment variable."""
    return {"AIRFLOW_CONN_BATCHROUTER_DEFAULT": json.dumps({"conn_type": "batchrouter", **fields})}


def _environment(home: Path, port: int, base_url: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "BATCHROUTER_", "PYTEST"))
    }
    return {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{base_url}/execution/",
        # A loaded machine is slower than five seconds.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": base_url,
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    }


def _run(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """All processes below one, at this moment."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found
