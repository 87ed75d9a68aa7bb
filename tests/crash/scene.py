"""A scene of the kill matrix: a store, an account of its own, and a job that a story runs there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from sqlalchemy import Engine, create_engine, text

from batchrouter.server.serve import mint_key
from batchrouter.testing import RunningRouter
from crash.desk import CONFIG
from crash.doctoring import Line, doctor_artifact, doctor_lines, failed, say_cancelled
from crash.scenario import PURCHASE_COLUMNS, queries

STORY = Path(__file__).parent / "story.py"
CONFIG_FILE = "router.json"
"""Beside the router's data: `CONFIG`, for the router and for each new account."""

SCOPES = ("quote", "submit", "read", "cancel")
INITIAL_MICRO = int(Decimal(CONFIG["credits"]["initial_usd"]) * 10**6)
ENDS_WITHIN_S = 180
_LOOK_INTERVAL_S = 0.02


@dataclass(frozen=True)
class Store:
    """Where run folders and tables live: a local folder or a bucket.

    Attributes:
        url: Below it every scene has a folder.
        env: What a process needs to reach it.
    """

    name: str
    url: str
    env: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def filesystem(self) -> fsspec.AbstractFileSystem:
        if not self.env:
            return fsspec.filesystem("file")
        return fsspec.filesystem(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            key=self.env["AWS_ACCESS_KEY_ID"],
            secret=self.env["AWS_SECRET_ACCESS_KEY"],
            use_listings_cache=False,
        )


@contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """Run moto's S3 server in a process of its own, with one bucket.

    fsspec keeps a file system per set of arguments, and the address is in none of them but in the
    environment: what it kept is forgotten, or the next server's tests would ask this one.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Path(sys.executable).with_name("moto_server")
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = Store("s3", "s3://drills", env)
    try:
        wait_for_port(port, process)
        store.filesystem().mkdir("drills")
        yield store
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        process.kill()
        process.wait(10)


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at and process.poll() is None:
        with closing(socket.socket()) as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


@dataclass
class Scene:
    """One job, run key and workspace that no other scene shares; `env` is its processes'."""

    root: Path
    router: RunningRouter
    store: Store
    story: str = "whole"
    model: str = "quick"
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    rows: pa.Table = field(default_factory=queries)
    base_url: str = ""
    max_run_usd: Decimal | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float = 60

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex
        self.url = f"{self.store.url}/{self.name}"
        self.api_key = mint_key(
            self.router.data_dir,
            SCOPES,
            workspace=self.name,
            config_path=self.router.data_dir.parent / CONFIG_FILE,
        )
        pq.write_table(self.rows, self.root / "queries.parquet")

    def text(self) -> str:
        """What the story's process reads."""
        job: dict[str, Any] = {
            "name": "label",
            "source": str(self.root / "queries.parquet"),
            "key": "query_id",
            "request": {
                "kind": "chat",
                "user": "{text}",
                "output": {"intent": {"type": "string", "enum": ["card", "transfer", "refund"]}},
                "parameters": {"max_output_tokens": 16},
            },
            "route": {"models": [self.model]},
            "budget": "5.00",
            "sink": f"{self.url}/labelled",
            "keep": ["text"],
            "retain": {"manifest": "until_landed"},
            **self.changes,
        }
        settings = {
            "base_url": self.base_url or self.router.base_url,
            "api_key": self.api_key,
            "runs_url": f"{self.url}/runs",
            "namespace": "kill-matrix",
            "poll_interval_s": 0.2,
            "retry_wait_s": 0.05,
        }
        scene: dict[str, Any] = {
            "job": job,
            "settings": settings,
            "run_key": "2026-11-22",
            "timeout_s": self.timeout_s,
        }
        if self.max_run_usd is not None:
            scene["max_run_usd"] = str(self.max_run_usd)
        return json.dumps(scene)

    def begin(self, **points: str) -> "Attempt":
        """Start one attempt at the story; `BATCHROUTER_KILL_AT=point` and the like by name."""
        kept = {name: value for name, value in os.environ.items() if "BATCHROUTER" not in name}
        process = subprocess.Popen(
            [sys.executable, str(STORY), self.story],
            env={**kept, **self.store.env, **self.env, **points},
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(self.text())
        process.stdin.close()
        process.stdin = None
        return Attempt(process)

    def end(self) -> Any:
        """Tell the story undisturbed, in a fresh process; returns its end."""
        return self.begin().end()

    def table(self) -> list[dict[str, Any]] | None:
        """The landed rows by key without what a purchase decides; None without a table."""
        filesystem = self.store.filesystem()
        folder = f"{self.url}/labelled".removeprefix("s3://")
        if not filesystem.exists(folder):
            return None
        arrow = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        landed = ds.dataset(folder, format="parquet", filesystem=arrow).to_table()
        kept = [name for name in landed.column_names if name not in PURCHASE_COLUMNS]
        return landed.select(kept).sort_by("query_id").to_pylist()

    def facts(self) -> list[dict[str, Any]]:
        """The journal, in order."""
        filesystem = self.store.filesystem()
        paths = filesystem.glob(f"{self.url}/runs/label/*/journal/*.json")
        return [json.loads(filesystem.cat_file(path))["fact"] for path in sorted(paths)]

    def garble_artifact(self) -> None:
        """Have the router keep, and vouch for, an artifact with a line that nobody can read."""
        [batch] = self.ledger().batches
        garbled = b'{"customer_item_id": no}\n'
        doctor_artifact(self.router, str(batch["id"]), lambda artifact: artifact + garbled)

    def fail_items(self) -> None:
        """Have the router keep an artifact in which one item failed and another has no line."""

        def change(number: int, line: Line) -> Line | None:
            return None if number == 7 else failed(line) if number == 3 else line

        [batch] = self.ledger().batches
        doctor_lines(self.router, str(batch["id"]), change)

    def cut_short(self) -> None:
        """Have the router say that the batch was cancelled when half of it was done."""
        half = len(self.rows) // 2
        [batch] = self.ledger().batches
        doctor_lines(
            self.router,
            str(batch["id"]),
            lambda number, line: line if number < half else failed(line, "cancelled"),
        )
        say_cancelled(self.router, str(batch["id"]), completed=half)

    def _router_database(self) -> Engine:
        return create_engine(f"sqlite:///{self.router.data_dir / 'router.db'}")

    def has_settled(self) -> bool:
        """True when all that was bought so far has ended."""
        return all(batch["completed_at"] for batch in self.ledger().batches)

    def ledger(self) -> "Ledger":
        """The account and its batches, as the router's own database has them."""
        engine = self._router_database()
        with engine.connect() as conn:
            account = conn.execute(
                text("select * from workspaces where name = :name"), {"name": self.name}
            ).one()
            bought = conn.execute(
                text("select * from batches where workspace_id = :id order by created_at"),
                {"id": account.id},
            ).all()
        engine.dispose()
        return Ledger(account, [batch._mapping for batch in bought])


@dataclass(frozen=True)
class Ledger:
    """Money in micro-dollars."""

    account: Any
    batches: list[Mapping[str, Any]]

    def check(self) -> None:
        """Nothing is reserved for what has ended, and all that was spent is on a batch."""
        charged = [batch["charged_micro"] for batch in self.batches]
        quoted = [batch["quoted_total_micro"] for batch in self.batches]
        assert None not in charged, "a batch has not settled"
        assert all(paid <= most for paid, most in zip(charged, quoted, strict=True))
        assert self.account.reserved_micro == 0
        assert self.account.spent_micro == sum(charged)
        assert self.account.balance_micro + self.account.spent_micro == INITIAL_MICRO


@dataclass
class Attempt:
    """A process that tells a story."""

    process: subprocess.Popen[str]

    def died(self) -> bool:
        """Wait for its end; True when it was a SIGKILL."""
        _, self.said = self._wait()
        return self.process.returncode == -signal.SIGKILL

    def wait_until_stopped(self) -> bool:
        """Wait until it stopped at its point; False when it ended without passing it."""
        give_up_at = time.monotonic() + ENDS_WITHIN_S
        while time.monotonic() < give_up_at:
            pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                return False
            time.sleep(_LOOK_INTERVAL_S)
        raise AssertionError("it neither stopped nor ended")

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> Any:
        """Wait for the story's end."""
        out, said = self._wait()
        assert self.process.returncode == 0, said[-3000:]
        return json.loads(out.splitlines()[-1])["end"]

    def _wait(self) -> tuple[str, str]:
        try:
            return self.process.communicate(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
