"""What a run's folder lets go of, and what it never does: on real runs, killed at every point."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sqlalchemy import create_engine, text

from batchrouter import Run
from batchrouter.errors import JournalError, LandingError
from batchrouter.run import PrunedRun, list_runs, prune_runs
from batchrouter.run.journal import Journal
from batchrouter.testing import RunningRouter
from crash.desk import Desk
from crash.scenario import BATCHROUTER, SIGKILLED
from crash.scene import s3_store

AT_ONCE = {"manifest": "until_landed"}
ALL = {**AT_ONCE, "artifact": "7d", "journal": "400d"}
MONTH = timedelta(days=30)


@pytest.fixture
def desk(router: RunningRouter, tmp_path: Path) -> Iterator[Desk]:
    sitting = Desk(tmp_path, router, router.base_url)
    yield sitting
    sitting.close()


def landed(desk: Desk, retain: dict[str, str] | None = None) -> Path:
    run = desk.open(changes={"retain": retain} if retain else {})
    run.execute(timeout_s=60)
    return Path(run.folder_url)


def age(folder: Path, by: timedelta) -> None:
    """Make a run as old as if it had been made so much earlier."""
    for path in folder.glob("journal/*.json"):
        event = json.loads(path.read_text())
        event["at"] = (datetime.fromisoformat(event["at"]) - by).isoformat()
        path.write_text(json.dumps(event))


def parts_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}


def prune(desk: Desk, **options: Any) -> list[PrunedRun]:
    return list(prune_runs(str(desk.root / "runs"), **options))


def removals(desk: Desk) -> list[list[str]]:
    return [fact["parts"] for fact in desk.facts() if fact["type"] == "removed"]


def test_the_manifest_goes_with_the_landing_and_the_rest_in_its_time(desk: Desk) -> None:
    folder = landed(desk, ALL)
    assert parts_in(folder) == {"journal", "rows", "artifact"}
    assert removals(desk) == [["manifest"]]
    assert prune(desk)[0].left == "was pruned before: manifest"

    age(folder, timedelta(days=8))
    [pruned] = prune(desk)

    assert (pruned.removed, pruned.left, pruned.file_count) == (("artifact",), None, 1)
    assert pruned.size_bytes > 0
    assert parts_in(folder) == {"journal", "rows"}
    age(folder, timedelta(days=400))
    [whole] = prune(desk)
    assert whole.removed == ("rows", "journal")
    assert not folder.exists()
    assert len(desk.rows()) == 10, "the table is not the run's to remove"


def test_a_run_that_is_opened_again_lets_go_of_what_has_come_due(desk: Desk) -> None:
    folder = landed(desk, {"artifact": "7d"})
    age(folder, timedelta(days=8))

    receipt = desk.open(changes={"retain": {"artifact": "7d"}}).execute(timeout_s=20)

    assert receipt.rows["succeeded"] == 10
    assert parts_in(folder) == {"journal", "manifest", "rows"}
    assert len(desk.batches()) == 1


def test_without_retain_nothing_goes_but_by_age(desk: Desk) -> None:
    folder = landed(desk)
    assert parts_in(folder) == {"journal", "manifest", "rows", "artifact"}
    [left] = prune(desk)
    assert "--older-than" in (left.left or "")
    [young] = prune(desk, older_than=MONTH)
    assert young.left == "ended too short a time ago"
    age(folder, MONTH)

    [told] = prune(desk, older_than=MONTH, dry_run=True)
    assert parts_in(folder) == {"journal", "manifest", "rows", "artifact"}
    assert removals(desk) == []
    [pruned] = prune(desk, older_than=MONTH)

    assert told == pruned
    assert pruned.removed == ("manifest", "artifact", "rows")
    assert parts_in(folder) == {"journal"}


def test_other_jobs_are_left_alone(desk: Desk) -> None:
    age(landed(desk), MONTH)

    assert prune(desk, older_than=MONTH, job="another") == []


@pytest.mark.parametrize("how_far", ["opened", "built", "bought", "ended"])
def test_what_is_open_is_never_touched_and_says_why(desk: Desk, how_far: str) -> None:
    run = desk.open("slow" if how_far == "bought" else "quick", changes={"retain": ALL})
    if how_far != "opened":
        run.build()
    if how_far in {"bought", "ended"}:
        run.submit()
    folder = Path(run.folder_url)
    before = parts_in(folder)
    age(folder, timedelta(days=500))

    [left] = prune(desk, older_than=MONTH)

    assert (left.left or "").startswith("open: ")
    assert left.removed == ()
    assert parts_in(folder) == before


def test_an_unsettled_purchase_is_never_touched(desk: Desk) -> None:
    folder = landed_but(desk, until="intended")

    [left] = prune(desk, older_than=timedelta(0))

    assert left.left == "open: whether a purchase exists is not settled"
    assert "manifest" in parts_in(folder)


def landed_but(desk: Desk, *, until: str) -> Path:
    """A run whose journal ends with an event of this type."""
    folder = landed(desk)
    paths = sorted(folder.glob("journal/*.json"))
    types = [json.loads(path.read_text())["fact"]["type"] for path in paths]
    for path in paths[types.index(until) + 1 :]:
        path.unlink()
    return folder


def test_a_cancelled_run_without_results_goes_by_age(desk: Desk) -> None:
    run = desk.open()
    run.build()
    run.cancel("not wanted")
    age(Path(run.folder_url), MONTH)

    [pruned] = prune(desk, older_than=MONTH)

    assert pruned.removed == ("manifest", "artifact", "rows")
    assert [status.stage for status in list_runs(str(desk.root / "runs"))] == ["cancelled"]
    again = desk.open(on_rerun="rebuy").execute(timeout_s=60)
    assert again.rows["succeeded"] == 10


def test_a_pruned_run_opened_again_has_nothing_to_do(desk: Desk) -> None:
    folder = landed(desk)
    age(folder, MONTH)
    prune(desk, older_than=MONTH)
    before = desk.facts()

    receipt = desk.open().execute(timeout_s=20)

    assert receipt.rows["succeeded"] == 10
    assert desk.facts() == before
    [status] = list_runs(str(desk.root / "runs"))
    assert (status.stage, status.removed) == ("landed", ("manifest", "artifact", "rows"))
    with pytest.raises(LandingError, match=r"row snapshot .* was removed .* stays as it was"):
        desk.open().land(again=True)
    assert len(desk.rows()) == 10


def test_landed_again_it_asks_for_the_routers_copy(desk: Desk) -> None:
    folder = landed(desk, {"artifact": "until_landed"})
    assert "artifact" not in parts_in(folder)
    for path in (desk.root / "labelled").rglob("*.parquet"):
        path.unlink()

    receipt = desk.open().land(again=True)

    assert receipt.rows["succeeded"] == 10
    assert len(desk.rows()) == 10
    assert len(desk.batches()) == 1
    assert "artifact" in parts_in(folder), "what came anew is kept by what is said now"
    [status] = list_runs(str(desk.root / "runs"))
    assert status.removed == ()


def expire_artifact(router: RunningRouter, batch_id: str) -> None:
    engine = create_engine(f"sqlite:///{router.data_dir / 'router.db'}")
    with engine.begin() as conn:
        statement = "update batches set artifact_expires_at = 1 where id = :id"
        assert conn.execute(text(statement), {"id": batch_id}).rowcount == 1
    engine.dispose()


def test_landed_again_when_the_router_has_forgotten_it_says_so(
    desk: Desk, router: RunningRouter
) -> None:
    landed(desk, {"artifact": "until_landed"})
    [batch] = desk.batches()
    expire_artifact(router, batch.id)
    before = desk.rows()

    with pytest.raises(LandingError, match=r"was removed on .* API has it no more.* stays as it"):
        desk.open().land(again=True)

    assert desk.rows() == before


def test_what_a_cancelled_batch_had_finished_is_not_landed_away(
    desk: Desk, router: RunningRouter
) -> None:
    """Its partial output has expired: rows that have results must not become missing ones."""
    run = desk.open(changes={"parts": {"max_items": 5}, "retain": {"artifact": "until_landed"}})
    run.execute(timeout_s=60)
    folder = Path(run.folder_url)
    for path in sorted(folder.glob("journal/*.json")):
        path.write_text(path.read_text().replace('"state": "succeeded"', '"state": "cancelled"'))
    for batch in desk.batches():
        expire_artifact(router, batch.id)
    before = desk.rows()

    with pytest.raises(LandingError, match="API has it no more"):
        desk.open(changes={"parts": {"max_items": 5}}).land(again=True)

    assert desk.rows() == before
    assert "missing" not in {row["_status"] for row in before}


def test_a_rebuy_at_the_same_moment_keeps_its_files(desk: Desk, monkeypatch: Any) -> None:
    """The pruning has looked, and before it writes its event the run is opened anew and built."""
    folder = landed(desk)
    age(folder, MONTH)
    append = Journal.append

    def late(journal: Journal, fact: Any, **options: Any) -> None:
        if fact.type == "removed":
            monkeypatch.undo()
            desk.open(on_rerun="rebuy").build()
        append(journal, fact, **options)

    monkeypatch.setattr(Journal, "append", late)
    [left] = prune(desk, older_than=MONTH)

    assert left.left == "open: not landed yet (built)"
    assert {"manifest", "rows"} <= parts_in(folder)
    assert desk.open().execute(timeout_s=60).generation == 1


def test_a_folder_that_is_being_removed_is_not_bought_into(desk: Desk) -> None:
    folder = landed(desk, ALL)
    age(folder, timedelta(days=500))
    old = desk.open(changes={"retain": ALL})
    killed = prune_in_a_process(desk, BATCHROUTER_KILL_AT="journal.after_removed")
    assert killed.returncode == SIGKILLED

    with pytest.raises(JournalError, match="is being removed"):
        desk.open(changes={"retain": ALL})
    with pytest.raises(JournalError, match="is being removed"):
        Run.open(old._context.job, run_key=desk.run_key, settings=old._context.settings)
    killed = prune_in_a_process(desk, BATCHROUTER_KILL_AT=f"prune.after_delete:{files(folder) - 1}")
    assert killed.returncode == SIGKILLED
    with pytest.raises(JournalError, match="is being removed"):
        desk.open(changes={"retain": ALL})
    assert list(list_runs(str(desk.root / "runs"))) == []

    assert prune_in_a_process(desk).returncode == 0
    assert not folder.exists()
    # The router still knows what this key has bought.
    assert desk.open(changes={"retain": ALL}).execute(timeout_s=60).rows["succeeded"] == 10
    assert len(desk.batches()) == 1


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def prune_in_a_process(desk: Desk, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "BATCHROUTER" not in name}
    return subprocess.run(
        [*BATCHROUTER, "runs", "prune", "--runs-url", str(desk.root / "runs"), *options],
        env={**kept, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("journal.before_removed", marks=pytest.mark.drill),
        "journal.after_removed",
        pytest.param("prune.before_delete", marks=pytest.mark.drill),
        pytest.param("prune.after_delete", marks=pytest.mark.drill),
        "prune.after_delete:2",
    ],
)
def test_a_pruning_that_was_killed_is_gone_on_with(desk: Desk, point: str) -> None:
    folder = landed(desk)
    age(folder, MONTH)

    killed = prune_in_a_process(desk, "--older-than", "30d", BATCHROUTER_KILL_AT=point)
    assert killed.returncode == SIGKILLED
    assert desk.open().execute(timeout_s=20).rows["succeeded"] == 10
    done = prune_in_a_process(desk, "--older-than", "30d", "--json")

    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert [run["left"] for run in told["runs"]] == [None]
    assert parts_in(folder) == {"journal"}
    assert removals(desk) == [["manifest", "artifact", "rows"]]


@pytest.mark.drill
def test_the_removal_of_a_folder_may_be_killed_at_every_file(desk: Desk) -> None:
    folder = landed(desk, ALL)
    age(folder, timedelta(days=500))
    for _ in range(40):
        left = files(folder)
        killed = prune_in_a_process(desk, BATCHROUTER_KILL_AT="prune.after_delete")
        if killed.returncode == 0:
            break
        assert files(folder) == left - 1 or left == files(folder)
        if files(folder):
            with pytest.raises(JournalError, match="is being removed"):
                desk.open(changes={"retain": ALL})
    assert files(folder) == 0


def test_one_damaged_run_does_not_keep_the_others(desk: Desk) -> None:
    age(landed(desk), MONTH)
    bad = desk.root / "runs" / "label" / "bad" / "journal"
    bad.mkdir(parents=True)
    (bad / "000001.json").write_text("{")

    done = prune_in_a_process(desk, "--older-than", "30d")

    assert done.returncode == 10
    assert "left     label/bad: journal event 1 " in done.stdout
    assert "removed  label · " in done.stdout
    assert "Pruned 1 of 2 runs" in done.stdout


def test_an_age_that_is_none_is_refused(desk: Desk) -> None:
    done = prune_in_a_process(desk, "--older-than", "month")

    assert done.returncode == 2
    assert "must be a duration" in done.stderr


def test_runs_on_an_object_store_are_pruned(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_store(tmp_path) as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        runs_url = f"{store.url}/runs"
        receipt = desk.open(runs_url=runs_url, changes={"retain": AT_ONCE}).execute(timeout_s=60)
        assert receipt.rows["succeeded"] == 10

        def below() -> set[str]:
            return {path.split("/")[4] for path in store.filesystem().find(runs_url)}

        assert below() == {"journal", "rows", "artifact"}
        [pruned] = prune_runs(runs_url, older_than=timedelta(0))
        assert pruned.removed == ("artifact", "rows")
        assert below() == {"journal"}
        [left] = prune_runs(runs_url, older_than=timedelta(0))
        assert left.left == "was pruned before: manifest, artifact, rows"
        fsspec.config.conf.clear()
