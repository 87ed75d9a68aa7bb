"""Keep what this version leaves behind, for every later version to go on with.

Writes one archive for each world into ``tests/releases/VERSION``: a router's data folder, killed
in mid-work with its durable workflows, beside the run folders and the inbox that go with it. Run
it when a version is released, and never again for that version; `test_releases.py` goes on with
every archive that there is.

    python tests/releases/freeze.py [--into FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchrouter import __version__
from batchrouter.testing import RunningRouter, running_router
from batchrouter.webhooks.inbox import open_inbox
from batchrouter.webhooks.signing import Event

ROWS = 8
NAMESPACE = "releases"
SIGKILLED = -9
_PRICE = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}


def _lane(model: str, **options: Any) -> dict[str, Any]:
    return {
        "provider": f"simulated-{model}",
        "region": "global",
        "capacity_items": 1000,
        "models": [{"name": model, **_PRICE}],
        "options": options,
    }


CONFIG = {"lanes": [_lane("quick"), _lane("slow", latency_s=2), _lane("long", latency_s=600)]}


@dataclass(frozen=True)
class Left:
    """One run as it was left: how it must end, and with how many batches."""

    run_key: str
    commands: tuple[tuple[str, str], ...] = (("run", ""),)
    """Each command with the kill point at which it dies; none: it must succeed."""
    model: str = "quick"
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    batches: int = 1


@dataclass(frozen=True)
class World:
    """A router and its runs, up to the moment in which everything dies."""

    name: str
    runs: tuple[Left, ...]
    router_dies_at: str = ""


WORLDS = (
    World(
        "runs",
        (
            Left("landed"),
            Left("built", (("run --dry-run", ""),)),
            Left("not sent", (("run", "submit.before_send"),)),
            Left("not settled", (("run", "submit.after_send"),)),
            Left(
                "in parts",
                (("run", "submit.before_send:2"),),
                changes={"parts": {"max_items": ROWS // 2}},
                batches=2,
            ),
            Left("waiting", (("run", "wait.during"),), model="slow"),
            Left("collected", (("run", "landing.before_write"),)),
            Left("bought again", (("run", ""), ("run --rebuy", "journal.after_built")), batches=2),
            Left(
                "cancelled",
                (("run", "journal.after_bought"), ("cancel", "journal.after_cancel_asked")),
                model="long",
            ),
        ),
    ),
    *(
        World(f"router {point}", (Left("run", (("run", "journal.after_bought"),)),), point)
        for point in (
            "work.after_plan_stored",
            "work.after_send",
            "work.after_result_stored",
            "work.before_settle",
        )
    ),
)


def command(
    line: str, job: Path, run_key: str, router: RunningRouter, **env: str
) -> subprocess.CompletedProcess[str]:
    """Give a command beside the job file, with the job's run folders below it."""
    name, *options = line.split()
    return subprocess.run(
        [sys.executable, "-m", "batchrouter", name, job.name, "--run-key", run_key, *options],
        cwd=job.parent,
        env={
            **{key: value for key, value in os.environ.items() if "BATCHROUTER" not in key},
            "BATCHROUTER_BASE_URL": router.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
            "BATCHROUTER_RUNS_URL": "runs",
            "BATCHROUTER_NAMESPACE": NAMESPACE,
            "BATCHROUTER_POLL_INTERVAL_S": "0.2",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def freeze(into: Path) -> None:
    """Write the archive of every world."""
    into.mkdir(parents=True)
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _live(world, root)
            path = into / f"{world.name.replace(' ', '-')}.tar.xz"
            with tarfile.open(path, "w:xz", preset=9) as archive:
                archive.add(root, ".", filter=_nobodys)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def _live(world: World, root: Path) -> None:
    (root / "router.json").write_text(json.dumps(CONFIG))
    env = {"BATCHROUTER_KILL_AT": world.router_dies_at} if world.router_dies_at else None
    with running_router(root / "router", config=CONFIG, env=env) as router:
        for run in world.runs:
            _leave(run, root, router)
        if world.router_dies_at:
            _expect(router.wait_for_death() == SIGKILLED, "the router lives")
        router.kill()
    (root / "router" / "router.log").unlink()
    inbox = open_inbox(f"sqlite:///{root / 'inbox.db'}")
    for number in range(3):
        batch_id = f"batch_{number}"
        now = datetime.now(UTC)
        inbox.put(Event(f"evt_{number}", "batch.completed", now, batch_id, "succeeded", {}))
    told = {"frozen_at_s": time.time(), "runs": [asdict(run) for run in world.runs]}
    (root / "world.json").write_text(json.dumps(told, indent=1))


def _leave(run: Left, root: Path, router: RunningRouter) -> None:
    job = root / f"{run.run_key.replace(' ', '-')}.json"
    texts = [f"card number {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"id": list(range(ROWS)), "text": texts}), root / "texts.parquet")
    job.write_text(
        json.dumps({
            "name": "label",
            "source": "texts.parquet",
            "key": "id",
            "request": {
                "kind": "chat",
                "user": "{text}",
                "output": {"intent": {"type": "string", "enum": ["card", "transfer"]}},
                "parameters": {"max_output_tokens": 16},
            },
            "route": {"models": [run.model]},
            "budget": "5.00",
            "sink": f"{job.stem}-table",
            "keep": ["text"],
            **run.changes,
        })
    )
    for line, dies_at in run.commands:
        done = command(line, job, run.run_key, router, BATCHROUTER_KILL_AT=dies_at)
        wanted = SIGKILLED if dies_at else 0
        _expect(done.returncode == wanted, f"{run.run_key}: {line}: {done.stderr}")


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _expect(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise SystemExit(otherwise)


def main() -> None:
    """Freeze this version."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / __version__)
    freeze(parser.parse_args().into)


if __name__ == "__main__":
    main()
