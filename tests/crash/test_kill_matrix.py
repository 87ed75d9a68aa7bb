"""The kill matrix: every named point of a run, on a local folder and on a real S3 API, three ways.

- ``killed``: SIGKILL at the point, and a fresh process goes on;
- ``orphaned``: stopped at the point as a worker that everyone takes for dead; its successor
  carries the run to its end; then the orphan wakes and goes on;
- ``together``: stopped at the point, and woken just as a second attempt begins.

Each cell: the batches at the router, the account to the micro-dollar, the rows by status, and the
table of an undisturbed run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from batchrouter.testing import RUN_KILL_POINTS, FaultProxy, RunningRouter, running_router
from crash.desk import CONFIG, refusal, wait_until
from crash.scenario import ROWS, queries
from crash.scene import CONFIG_FILE, Attempt, Scene, Store, s3_store

UNFINISHED = frozenset({"cancelled", "stopped at the budget"})
"""The stories whose run is given up: how much had been sent by then is chance."""

BOUGHT_TWICE = frozenset({"bought again", "resent", "the rest"})

POINTS_OF_THE_REST = (
    "journal.before_generation_opened",
    "journal.after_generation_opened",
    "round.after_build",
    "journal.before_round_built",
    "journal.after_round_built",
    "submit.after_send",
)
"""Points at which buying the rest of a run differs from buying it anew."""

WAYS = ("killed", "orphaned", "together")

STORY_OF = {
    "journal.before_claimed": "claimed",
    "journal.after_claimed": "claimed",
    "journal.before_generation_opened": "bought again",
    "journal.after_generation_opened": "bought again",
    "journal.before_pinned": "versioned",
    "journal.after_pinned": "versioned",
    "journal.before_refused": "refused",
    "journal.after_refused": "refused",
    "journal.before_cancel_asked": "cancelled",
    "journal.after_cancel_asked": "cancelled",
    "cancel.before_send": "cancelled",
    "cancel.after_send": "cancelled",
    "journal.before_stopped": "stopped at the budget",
    "journal.after_stopped": "stopped at the budget",
    "round.before_build": "resent",
    "round.after_build": "resent",
    "journal.before_round_built": "resent",
    "journal.after_round_built": "resent",
    "journal.before_rounds_ended": "nothing to resend",
    "journal.after_rounds_ended": "nothing to resend",
    "landing.mid_write": "wide",
    "landing.before_quarantine": "garbled",
    "landing.after_quarantine": "garbled",
}
"""The points that a plain run does not pass; all others are passed by the story `whole`."""

ONLY_ON_LOCAL = frozenset({"api.before_artifact_kept", "api.after_artifact_kept"})
"""A local copy of an artifact is renamed when it is whole; an object comes to be whole."""

SHORT = (
    "journal.before_intended",
    "submit.after_send",
    "journal.before_bought",
    "wait.during",
    "journal.before_round_built",
    "journal.after_round_built",
    "landing.before_commit",
)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("matrix")
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))
    with running_router(folder / "router", config=CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store("local", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="module")
def stage(router: RunningRouter, tmp_path_factory: pytest.TempPathFactory) -> "Stage":
    return Stage(router, tmp_path_factory.mktemp("scenes"))


class Stage:
    """Sets scenes up, and knows how each story ends when nothing disturbs it."""

    def __init__(self, router: RunningRouter, root: Path) -> None:
        self.router, self.root = router, root
        self.undisturbed = cache(self._undisturbed)
        self._count = 0

    def scene(self, story: str, store: Store) -> Scene:
        self._count += 1
        root = self.root / f"{self._count:04d}"
        match story:
            case "wide":
                blob = pa.array([b"\0" * (2 << 20)] * ROWS)
                rows = queries().append_column("blob", blob)
                return Scene(root, self.router, store, rows=rows, changes={"keep": ["blob"]})
            case "versioned":
                table = root.with_suffix(".delta")
                deltalake.write_deltalake(table, queries())
                return Scene(root, self.router, store, changes={"source": f"delta:{table}"})
            case "cancelled":
                return Scene(root, self.router, store, story, "slow")
            case "stopped at the budget":
                changes = {"parts": {"max_items": ROWS // 2}}
                most = self.part_price(store) * Decimal("1.5")
                return Scene(root, self.router, store, story, "slow", changes, max_run_usd=most)
            case "refused" | "garbled" | "resent" | "nothing to resend":
                rounds = {"retry_failed": 1} if "resen" in story else {}
                return Scene(root, self.router, store, changes=rounds)
            case _:
                told = "bought again" if story == "the rest" else story
                return Scene(root, self.router, store, told)

    @cache  # noqa: B019 - the stage lives as long as the module's tests
    def part_price(self, store: Store) -> Decimal:
        """What half of the rows are quoted at."""
        half = Scene(self.root / f"price-{store.name}", self.router, store, rows=queries(ROWS // 2))
        half.end()
        return Decimal(half.ledger().batches[0]["quoted_total_micro"]) / 10**6

    def _undisturbed(self, story: str, store: Store) -> list[dict[str, Any]] | None:
        scene = self.scene(story, store)
        with prepared(scene, story):
            scene.end()
        return scene.table()


@contextmanager
def prepared(scene: Scene, story: str) -> Iterator[None]:
    """Bring what a story needs beside its process: a proxy that refuses, or a garbled artifact."""
    match story:
        case "refused" | "stopped at the budget":
            with FaultProxy(scene.router.base_url) as proxy:
                scene.base_url = proxy.base_url
                expired = refusal("quote_lock_expired")
                nth = 1 if story == "refused" else 2
                proxy.answer("POST", "/v1/batches", status=409, body=expired, nth=nth)
                yield
        case "garbled":
            assert scene.begin(BATCHROUTER_KILL_AT="download.before").died()
            scene.garble_artifact()
            yield
        case "resent":
            assert scene.begin(BATCHROUTER_KILL_AT="download.before").died()
            scene.fail_items()
            yield
        case "the rest":
            assert scene.begin(BATCHROUTER_KILL_AT="journal.before_ended").died()
            scene.cut_short()
            yield
        case _:
            yield


def killed(scene: Scene, point: str) -> Any:
    attempt = scene.begin(BATCHROUTER_KILL_AT=point)
    assert attempt.died(), (point, attempt.said[-2000:])
    return scene.end()


def orphaned(scene: Scene, point: str) -> Any:
    orphan = stopped_at(scene, point)
    end = scene.end()
    orphan.go_on()
    assert orphan.end() is not None
    return end


def together(scene: Scene, point: str) -> Any:
    first = stopped_at(scene, point)
    second = scene.begin()
    wait_until(lambda: is_awake(second), within_s=60)
    first.go_on()
    first.end()
    return second.end()


def stopped_at(scene: Scene, point: str) -> Attempt:
    attempt = scene.begin(BATCHROUTER_STOP_AT=point)
    assert attempt.wait_until_stopped(), point
    return attempt


def is_awake(attempt: Attempt) -> bool:
    """True once it has loaded what reads and writes tables: its story begins."""
    maps = Path(f"/proc/{attempt.process.pid}/maps")
    return attempt.process.poll() is not None or "libarrow" in maps.read_text()


BY_WAY: dict[str, Callable[[Scene, str], Any]] = {
    "killed": killed,
    "orphaned": orphaned,
    "together": together,
}


def play(point: str, way: str, store: Store, stage: Stage, story: str | None = None) -> None:
    story = story or STORY_OF.get(point, "whole")
    scene = stage.scene(story, store)
    with prepared(scene, story):
        end = BY_WAY[way](scene, point)
        wait_until(scene.has_settled)
    check(scene, story, end, stage)


def check(scene: Scene, story: str, end: Any, stage: Stage) -> None:
    ledger = scene.ledger()
    assert len(ledger.batches) == (2 if story in BOUGHT_TWICE else 1)
    ledger.check()
    if story in UNFINISHED:
        check_partial(scene, end)
    else:
        assert end["rows"]["succeeded"] == end["row_count"] == ROWS
        assert end["quarantined"] == int(story == "garbled")
        assert scene.table() == stage.undisturbed(story, scene.store)


def check_partial(scene: Scene, end: Any) -> None:
    """What was cancelled or stopped says so, or lands what had been sent, each row once."""
    table = scene.table()
    if isinstance(end, str):
        assert end in {"run_cancelled", "budget_exceeded"}
        assert table is None
    else:
        assert table is not None
        landed = Counter(row["_status"] for row in table)
        assert landed == +Counter(end["rows"])
        assert len({row["query_id"] for row in table}) == len(table) == ROWS


@pytest.mark.parametrize("point", SHORT)
def test_killed_on_a_local_folder(point: str, local: Store, stage: Stage) -> None:
    play(point, "killed", local, stage)


def test_an_orphan_wakes_after_its_successor_has_landed(local: Store, stage: Stage) -> None:
    play("submit.before_send", "orphaned", local, stage)


def test_killed_on_s3(s3: Store, stage: Stage) -> None:
    play("submit.after_send", "killed", s3, stage)


def test_killed_while_it_buys_the_rest(local: Store, stage: Stage) -> None:
    play("journal.before_round_built", "killed", local, stage, "the rest")


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", POINTS_OF_THE_REST)
def test_the_rest(point: str, way: str, local: Store, stage: Stage) -> None:
    play(point, way, local, stage, "the rest")


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("point", "where"),
    [
        (point, where)
        for point in RUN_KILL_POINTS
        for where in ("local", "s3")
        if where == "local" or point not in ONLY_ON_LOCAL
    ],
)
def test_matrix(
    point: str, way: str, where: str, stage: Stage, request: pytest.FixtureRequest
) -> None:
    play(point, way, request.getfixturevalue(where), stage)


def test_every_point_has_its_story(stage: Stage, local: Store, tmp_path: Path) -> None:
    log = tmp_path / "points.log"
    scene = stage.scene("whole", local)
    scene.begin(BATCHROUTER_KILL_LOG=str(log)).end()

    passed = Counter(log.read_text().split())

    assert set(RUN_KILL_POINTS) - set(passed) == set(STORY_OF)
