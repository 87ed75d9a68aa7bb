"""What opening, building and landing may never do, with no router in sight."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchrouter import Job, Run, Settings
from batchrouter.errors import (
    BatchrouterError,
    ConfigError,
    LandingError,
    RunCancelledError,
    RunIdentityConflictError,
    StorageError,
)
from batchrouter.run import Done, Progress, cancel_run, list_runs, reopen, steps
from batchrouter.run.events import Bought, Claimed, Collected, Ended, Intended
from batchrouter.run.journal import Journal

OpenRun = Callable[..., Run]


def job_over(source: Any, tmp_path: Path, **changes: Any) -> Job:
    fields = {
        "name": "label",
        "source": source,
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "5.00",
        "sink": str(tmp_path / "labelled"),
    }
    return Job.model_validate({**fields, **changes})


def table(rows: int = 4) -> pa.Table:
    columns = {"id": list(range(rows)), "text": [f"text {row}" for row in range(rows)]}
    return pa.table(columns, schema=pa.schema({"id": pa.int64(), "text": pa.string()}))


@pytest.fixture
def open_run(tmp_path: Path) -> OpenRun:
    pq.write_table(table(), tmp_path / "t.parquet")

    def open_it(run_key: str = "k", runs_url: str | None = None, **options: Any) -> Run:
        job = options.pop("job", None) or job_over(str(tmp_path / "t.parquet"), tmp_path)
        settings = Settings(runs_url=runs_url or str(tmp_path / "runs"), namespace="ns")
        return Run.open(job, run_key=run_key, settings=settings, **options)

    return open_it


def journal_of(run: Run) -> Journal:
    return run._context.journal


def types_of(run: Run) -> list[str]:
    folder = run._context.folder
    names = folder.names("journal")
    return [json.loads(folder.read(folder.path("journal", name)))["fact"]["type"] for name in names]


def intend(run: Run) -> None:
    """Write down a purchase, as an attempt does just before it sends it."""
    journal_of(run).append(
        Intended(
            generation=0,
            part=0,
            key="key",
            body={"metadata": {}},
            quote_id="q",
            quoted_usd=Decimal("1.00"),
            clock_offset_s=0.0,
            account="me",
        )
    )


def test_two_builds_at_once_leave_one(open_run: OpenRun) -> None:
    fast = open_run()
    slow = open_run(on_progress=lambda _: fast.build())

    slow.build()

    assert types_of(slow) == ["opened", "built"]
    assert slow.status().row_count == 4


def test_a_changed_job_does_not_start_over_while_another_attempt_buys(
    open_run: OpenRun, tmp_path: Path
) -> None:
    buying = open_run()
    buying.build()
    late = open_run()
    intend(buying)
    changed = {**late._context.job.fingerprint(), "request": "1:changed"}

    with pytest.raises(RunIdentityConflictError, match="another request"):
        reopen._check_same(late._context, changed)

    assert types_of(late)[-1] == "intended"


def test_a_changed_job_starts_over_while_nothing_was_bought(
    open_run: OpenRun, tmp_path: Path
) -> None:
    open_run().build()
    request = {"kind": "chat", "user": "Label: {text}", "parameters": {"max_output_tokens": 8}}

    again = open_run(job=job_over(str(tmp_path / "t.parquet"), tmp_path, request=request))

    assert again.status().stage == "opened"
    assert again.status().generation == 1


def test_the_same_attempt_may_claim_from_two_processes(open_run: OpenRun) -> None:
    late = open_run()
    open_run(attempt="try-1")

    reopen.claim(late._context, "try-1")

    assert types_of(late).count("claimed") == 1


def test_landing_never_buys(open_run: OpenRun) -> None:
    run = open_run()

    with pytest.raises(LandingError, match="not bought yet"):
        run.land()

    assert types_of(run) == ["opened"]


@pytest.mark.parametrize("is_built", [False, True])
def test_a_cancel_before_anything_was_bought_gives_up(open_run: OpenRun, *, is_built: bool) -> None:
    run = open_run()
    if is_built:
        run.build()

    assert run.cancel("enough")

    with pytest.raises(RunCancelledError):
        run.advance()
    assert run.submit() == ()
    assert run.status().stage == "cancelled"


def test_a_run_is_cancelled_by_its_names_alone(open_run: OpenRun, tmp_path: Path) -> None:
    run = open_run(attempt="try-1")
    settings = Settings(runs_url=str(tmp_path / "runs"), namespace="ns")

    assert not cancel_run("label", "another key", settings=settings)
    assert not cancel_run("label", "k", settings=settings, attempt="try-0", grace_s=0)
    assert cancel_run("label", "k", settings=settings, attempt="try-1", grace_s=0)
    assert run.status().stage == "cancelled"
    assert [each.run_key for each in list_runs(str(tmp_path / "runs"))] == ["k"]


def test_a_cancel_of_an_attempt_that_was_taken_over_does_nothing(open_run: OpenRun) -> None:
    old = open_run(attempt="try-1")
    open_run(attempt="try-2")

    assert not old.cancel(attempt="try-1", grace_s=0)
    assert old.cancel(attempt="try-2", grace_s=0)
    assert types_of(old) == ["opened", "claimed", "claimed", "cancel_asked"]


def test_a_successor_that_claims_within_the_grace_keeps_its_batch(open_run: OpenRun) -> None:
    old = open_run(attempt="try-1")
    successor = threading.Timer(0.1, lambda: open_run(attempt="try-2"))
    successor.start()

    assert not old.cancel(attempt="try-1", grace_s=0.5)
    successor.join()


def test_a_loser_whose_files_the_winner_removed_goes_on(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, winner = open_run(), open_run()

    def lose(_context: object) -> None:
        winner.build()
        winner.cancel("so that there is an end")
        raise StorageError("the part is gone")

    monkeypatch.setattr(steps, "build", lose)

    with pytest.raises(RunCancelledError):
        run.advance()


def test_an_empty_table_is_landed_without_an_api_and_may_change(
    open_run: OpenRun, tmp_path: Path
) -> None:
    job = job_over(table(0), tmp_path)
    run = open_run(job=job)

    step = run.advance()
    again = run.land(again=True)

    assert isinstance(step, Done)
    assert (step.receipt.row_count, again.row_count) == (0, 0)
    assert types_of(run) == ["opened", "built", "landed", "landed"]


def test_landing_again_survives_a_lost_race(open_run: OpenRun, tmp_path: Path) -> None:
    job = job_over(table(0), tmp_path)
    run = open_run(job=job)
    run.advance()
    journal_of(open_run(job=job)).append(Claimed(attempt="another"))

    assert run.land(again=True).row_count == 0


def test_an_orphan_that_lands_an_older_generation_late_puts_the_newer_one_back(
    open_run: OpenRun, tmp_path: Path
) -> None:
    def unanswerable(rows: int) -> Job:
        source = pa.table({"id": list(range(rows)), "text": pa.nulls(rows, pa.string())})
        return job_over(source, tmp_path, on_null="skip")

    def be_overtaken(progress: Progress) -> None:
        if progress.stage == "land" and orphan.status().generation == 0:
            newer = open_run(job=unanswerable(7), on_rerun="rebuy")
            assert isinstance(newer.advance(), Done)

    orphan = open_run(job=unanswerable(3), on_progress=be_overtaken)

    step = orphan.advance()

    assert isinstance(step, Done)
    assert (step.receipt.generation, step.receipt.rows["skipped"]) == (1, 7)
    assert ds.dataset(tmp_path / "labelled").count_rows() == 7


def test_two_rebuys_of_one_generation_open_one(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = job_over(table(0), tmp_path)
    open_run(job=job).advance()
    settle_each = reopen._settle_each

    def be_overtaken(context: Any) -> frozenset[int]:
        given_up = settle_each(context)
        monkeypatch.setattr(reopen, "_settle_each", settle_each)
        assert isinstance(open_run(job=job, on_rerun="rebuy").advance(), Done)
        return given_up

    monkeypatch.setattr(reopen, "_settle_each", be_overtaken)

    orphan = open_run(job=job, on_rerun="rebuy")

    assert orphan.status().generation == 1
    assert types_of(orphan).count("generation_opened") == 1


@pytest.mark.parametrize("url", ["memory://{name}/runs", "file://{path}/runs", "runs"])
def test_a_run_lives_at_any_url_and_stays_there_when_the_process_moves(
    open_run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    runs_url = url.format(name=tmp_path.name, path=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = open_run(runs_url=runs_url, job=job_over(pl.from_arrow(table()), tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere")

    run.build()

    monkeypatch.chdir(tmp_path)
    [status] = list_runs(runs_url)
    assert (status.row_count, status.stage) == (4, "built")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("run_key", ["Lauf/ÄÖ 日本\n", "k" * 5000, "../../etc", "a\0b"])
def test_any_run_key_has_a_folder_of_its_own_below_the_job(
    open_run: OpenRun, tmp_path: Path, run_key: str
) -> None:
    run = open_run(run_key)
    run.build()

    [folder] = (tmp_path / "runs" / "label").iterdir()
    assert str(folder) == run.folder_url
    assert open_run(run_key).status().run_key == run_key


def test_a_trial_has_a_run_of_its_own(open_run: OpenRun) -> None:
    trial = open_run(limit=2)
    trial.build()

    assert trial.status().row_count == 2
    assert trial.folder_url != open_run().folder_url
    with pytest.raises(ConfigError, match="limit"):
        open_run(limit=0)


def test_a_stray_file_among_the_runs_is_passed_over(open_run: OpenRun, tmp_path: Path) -> None:
    open_run()
    (tmp_path / "runs" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "runs" / "label" / "notes.txt").write_bytes(b"x")

    assert [status.run_key for status in list_runs(str(tmp_path / "runs"))] == ["k"]


def test_no_event_holds_a_secret_or_a_path(open_run: OpenRun, tmp_path: Path) -> None:
    settings = Settings(
        api_key="bk_live_secret",
        webhook_secret="whsec_secret",
        webhook_url="https://secret.example/hook",
        storage_options={"token": "secret"},
        runs_url=str(tmp_path / "runs"),
    )
    job = job_over(str(tmp_path / "t.parquet"), tmp_path)
    Run.open(job, run_key="k", settings=settings).build()

    events = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("journal/*.json"))
    assert b"built" in events
    assert b"secret" not in events
    assert str(tmp_path).encode() not in events


def test_a_shorter_copy_of_an_artifact_is_never_landed(open_run: OpenRun, tmp_path: Path) -> None:
    run = open_run()
    run.build()
    intend(run)
    facts = (
        Bought(
            generation=0, part=0, batch_id="batch_1", quoted_usd=Decimal("1.00"), how="accepted"
        ),
        Ended(batch_id="batch_1", state="succeeded", completed=4, failed=0, settled_usd=None),
        Collected(batch_id="batch_1", artifact_name="a.jsonl", bytes=100, sha256="x"),
    )
    for fact in facts:
        journal_of(run).append(fact)
    artifact = Path(run._context.folder.ensure("artifact"), "a.jsonl")

    for damage in (b"", b"cut short"):
        artifact.write_bytes(damage)
        with pytest.raises(BatchrouterError):
            run.advance()
    artifact.unlink()
    with pytest.raises(BatchrouterError):
        run.advance()
    assert not (tmp_path / "labelled").exists()


def test_the_servers_clock_is_measured_against_this_hosts_own(open_run: OpenRun) -> None:
    context = open_run()._context
    other_hosts_offset_s = 3600.0
    assert _ahead_s(context.server_now(other_hosts_offset_s)) == pytest.approx(3600, abs=5)

    context.note_server_time(datetime.now(UTC) - timedelta(minutes=10))
    context.note_server_time(None)

    assert _ahead_s(context.server_now(other_hosts_offset_s)) == pytest.approx(-600, abs=5)


def _ahead_s(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


def test_an_attempt_is_granted_its_rebuy_once(open_run: OpenRun, tmp_path: Path) -> None:
    job = job_over(table(0), tmp_path)
    open_run(job=job).advance()

    for _ in range(2):  # the second is a retry, under the same token
        open_run(job=job, on_rerun="rebuy", attempt="launch-1").advance()
    retried = open_run(job=job, on_rerun="rebuy", attempt="launch-1").status().generation
    other = open_run(job=job, on_rerun="rebuy", attempt="launch-2").status().generation

    assert (retried, other) == (1, 2)


def test_a_rebuy_of_what_was_never_bought_counts_as_granted(
    open_run: OpenRun, tmp_path: Path
) -> None:
    job = job_over(table(0), tmp_path)
    open_run(job=job, on_rerun="rebuy", attempt="launch-1").advance()

    assert open_run(job=job, on_rerun="rebuy", attempt="launch-1").status().generation == 0


def test_a_run_tells_the_columns_of_its_table_before_it_buys(
    open_run: OpenRun, tmp_path: Path
) -> None:
    columns = open_run().columns()

    assert columns.names[:3] == ["id", "output", "_status"]
    assert columns.field("id").type == pa.int64()
    assert not (tmp_path / "labelled").exists()
