"""Routers that share a real PostgreSQL: API processes and workers, each killed as a test likes."""

import contextlib
import json
import secrets
import signal
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from batchrouter.server.config import load_config
from batchrouter.server.serve import migrate
from batchrouter.testing import RunningRouter

LEASE_S = 3.0


@contextmanager
def fresh_database(postgres_url: str) -> Generator[str]:
    """Make an empty database on a server; it is dropped at the end."""
    name = f"router_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    try:
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Cluster:
    """Processes on one database and one store, each with a folder of its own."""

    def __init__(
        self, root: Path, database: str, config: Mapping[str, Any], env: Mapping[str, str]
    ) -> None:
        self.root = root
        self.database = database
        self.env = {
            **env,
            "BATCHROUTER_DATABASE": database,
            "BATCHROUTER_SECRET_KEY_FILE": str(root / "secret_key"),
        }
        self.running: list[RunningRouter] = []
        self._config = root / "router.json"
        base = {} if "lanes" in config else load_config().model_dump(mode="json", exclude_none=True)
        self._config.write_text(
            json.dumps({**base, "workers": {"lease_s": LEASE_S}, **config}, default=str)
        )

    def add(self, role: str, *options: str, env: Mapping[str, str] | None = None) -> RunningRouter:
        """Start a process; a name is never used again."""
        folder = self.root / f"{role}-{secrets.token_hex(3)}"
        folder.mkdir()
        router = RunningRouter(
            folder,
            options=["--port", "0", "--config", str(self._config), "--role", role, *options],
            log_path=folder / "router.log",
        )
        self.running.append(router)
        router.start({**self.env, **(env or {})})
        return router

    @property
    def api_key(self) -> str:
        """The first key, which the first API process has minted."""
        [path] = self.root.glob("*/api_key")
        return path.read_text().strip()

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.database) as conn:
            return conn.execute(query).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]

    def log(self) -> str:
        return "\n".join(router.log_path.read_text() for router in self.running)

    def stop(self) -> None:
        for router in self.running:
            with contextlib.suppress(ProcessLookupError):
                router.send(signal.SIGCONT)
            router.kill()


@contextmanager
def cluster(
    root: Path,
    postgres_url: str,
    config: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Generator[Cluster]:
    root.mkdir(parents=True, exist_ok=True)
    with fresh_database(postgres_url) as database:
        migrate(database)
        made = Cluster(root, database, config or {}, env or {})
        try:
            yield made
        finally:
            made.stop()
