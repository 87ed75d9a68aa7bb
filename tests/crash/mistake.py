"""A job with something wrong in it: a user's command line, and what it must say and leave alone."""

import contextlib
import copy
import io
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from batchrouter.cli import main
from batchrouter.testing import RunningRouter
from crash.scenario import BATCHROUTER, batches_of, queries

ROWS = 8

WRONG_COMMAND, WRONG_SOURCE, TOO_DEAR, REFUSED, NO_ANSWER = 2, 3, 4, 5, 6
CUT_SHORT, OTHER_PURCHASE, NO_TABLE, NO_RUN_FOLDER = 7, 8, 9, 10
"""The exit codes that `batchrouter --help` documents."""

_MOST_LINES = 2


@dataclass
class Mistake:
    """A job in a folder of its own, right until a test makes it wrong."""

    root: Path
    router: RunningRouter
    base_url: str
    job: dict[str, Any]
    run_key: str
    env: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def source(self) -> Path:
        return self.root / "queries.parquet"

    @property
    def sink(self) -> Path:
        return self.root / "labelled"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def job_file(self) -> str:
        """Write the job as it is now."""
        path = self.root / "job.yaml"
        path.write_text(yaml.safe_dump(self.job, allow_unicode=True))
        return str(path)

    def environment(self, **env: str) -> dict[str, str]:
        """What the commands see."""
        return {
            **{name: value for name, value in os.environ.items() if "BATCHROUTER" not in name},
            "BATCHROUTER_BASE_URL": self.base_url,
            "BATCHROUTER_API_KEY": self.router.api_key,
            "BATCHROUTER_POLL_INTERVAL_S": "0.2",
            **self.env,
            **env,
        }

    def cli(
        self, command: str, *options: str, timeout_s: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Give `run`, `check`, `quote` or `land` as a user does, on the job as it is now."""
        keyed = ["--run-key", self.run_key] if command in {"run", "land", "cancel"} else []
        return subprocess.run(
            [*BATCHROUTER, command, self.job_file(), *keyed, *options],
            cwd=self.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def fails(
        self,
        exit_code: int,
        *words: str,
        command: str = "run",
        options: tuple[str, ...] = (),
        bought: int = 0,
        lines: int = _MOST_LINES,
        **env: str,
    ) -> str:
        """Give the command; it must say these words, in a line or two, and leave all as it was."""
        before = self.landed_files()
        done = self.cli(command, *options, **env)
        told = done.stderr
        assert done.returncode == exit_code, (done.returncode, told[-3000:])
        for word in words:
            assert word in told, (word, told)
        assert "Traceback" not in told
        assert self.router.api_key not in told + done.stdout
        _, begins, message = told.partition("Error: ")
        assert begins, told
        assert len(message.splitlines()) <= lines, told
        assert self.bought == bought
        assert self.landed_files() == before
        assert self.no_litter(), "a manifest of a failed build was left behind"
        return told

    def succeeds(self, *, bought: int = 1, **env: str) -> dict[str, Any]:
        """Run to the end under the same key; in this process, which has loaded all it needs."""
        told = io.StringIO()
        with (
            patch.dict(os.environ, self.environment(**env), clear=True),
            contextlib.chdir(self.root),
            contextlib.redirect_stdout(told),
            pytest.raises(SystemExit) as ended,
        ):
            main(["run", self.job_file(), "--run-key", self.run_key, "--json"])
        assert ended.value.code == 0, told.getvalue()
        assert self.bought == bought
        return json.loads(told.getvalue())

    @property
    def bought(self) -> int:
        """How many batches this run key has at the router."""
        return len(batches_of(self.router, self.run_key))

    def landed_files(self) -> dict[str, bytes]:
        """The table's files, and whatever stands beside it that could be mistaken for some."""
        beside = [*self.sink.rglob("*"), *self.root.glob(".labelled*/**/*")]
        return {str(path): path.read_bytes() for path in beside if path.is_file()}

    def no_litter(self) -> bool:
        """True when every manifest in the run folder is one that the journal names."""
        journal = "".join(path.read_text() for path in self.runs.glob("*/*/journal/*.json"))
        files = [*self.runs.glob("*/*/manifest/*"), *self.runs.glob("*/*/rows/*")]
        return all(path.name in journal for path in files)

    def table(self) -> pa.Table:
        """Read the landed rows."""
        return ds.dataset(self.sink, format="parquet").to_table().sort_by("query_id")

    def write(self, table: pa.Table) -> None:
        """Put another table in the source's place."""
        pq.write_table(table, self.source)


_JOB: dict[str, Any] = {
    "name": "label-queries",
    "source": "queries.parquet",
    "key": "query_id",
    "request": {
        "kind": "chat",
        "system": "You label bank queries.",
        "user": "{text}",
        "output": {"intent": {"type": "string", "enum": ["card", "transfer", "refund", "fees"]}},
        "parameters": {"max_output_tokens": 32},
    },
    "route": {"models": ["gpt-4o-mini", "claude-haiku-4"]},
    "budget": 5,
    "sink": "labelled",
    "keep": ["text"],
}


def mistake(root: Path, router: RunningRouter, base_url: str | None = None) -> Mistake:
    """Write a small table and a job that is right."""
    root.mkdir(exist_ok=True)
    made = Mistake(
        root=root,
        router=router,
        base_url=base_url or router.base_url,
        job=copy.deepcopy(_JOB),
        run_key=root.name,
    )
    made.write(queries(ROWS))
    return made
