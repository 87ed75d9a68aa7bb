"""A run folder that lost some of its files, or belongs to somebody else: never a second purchase.

Whatever is gone, the next command comes to the same table, or says what is missing and does
nothing; with the files back it comes to the same table.
"""

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from batchrouter.cli import main
from batchrouter.testing import RunningRouter, running_router
from crash.mistake import NO_RUN_FOLDER, NO_TABLE, ROWS, Mistake, mistake
from crash.scenario import SIGKILLED

SAID = (NO_RUN_FOLDER, NO_TABLE)
NOBODY = 65534
STRANGER = Path(__file__).with_name("stranger.py")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def bad(router: RunningRouter, tmp_path: Path) -> Mistake:
    return mistake(tmp_path, router)


def folder_of(bad: Mistake) -> Path:
    [folder] = (path.parent for path in bad.runs.glob("*/*/journal"))
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def said_by(bad: Mistake) -> tuple[int, str]:
    """Give the command in this process; returns its exit code and what it said."""
    told = io.StringIO()
    with (
        patch.dict(os.environ, bad.environment(), clear=True),
        contextlib.chdir(bad.root),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(told),
        pytest.raises(SystemExit) as ended,
    ):
        main(["run", bad.job_file(), "--run-key", bad.run_key])
    code = ended.value.code
    assert isinstance(code, int)
    return code, told.getvalue()


def began(bad: Mistake, dies_at: str | None) -> None:
    if dies_at is None:
        bad.succeeds()
    else:
        assert bad.cli("run", BATCHROUTER_KILL_AT=dies_at).returncode == SIGKILLED


def check_table(bad: Mistake) -> None:
    table = bad.table()
    assert table.num_rows == ROWS
    assert set(table["_status"].to_pylist()) == {"succeeded"}


def lose(bad: Mistake, lost: list[Path]) -> None:
    """Go on without some files, then with them back."""
    folder = folder_of(bad)
    whole = bad.root / "whole"
    shutil.copytree(folder, whole)
    for path in lost:
        path.unlink()

    code, told = said_by(bad)

    assert bad.bought == 1
    if code:
        assert code in SAID, told
        assert "Traceback" not in told
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        assert said_by(bad)[0] == 0
        assert bad.bought == 1
    check_table(bad)


@pytest.mark.parametrize("dies_at", ["journal.after_bought", None])
def test_half_of_the_folder_is_gone(bad: Mistake, dies_at: str | None) -> None:
    began(bad, dies_at)
    files = files_of(folder_of(bad))

    lose(bad, files[: len(files) // 2])


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dies_at", ["submit.after_send", "journal.after_collected", None])
def test_any_files_are_gone(bad: Mistake, dies_at: str | None, seed: int) -> None:
    began(bad, dies_at)
    chance = random.Random(seed)
    files = files_of(folder_of(bad))

    lose(bad, chance.sample(files, chance.randint(1, len(files))))


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.drill)])
def test_the_end_of_the_history_is_gone(bad: Mistake, step: int) -> None:
    """As a disk loses what was written last: from wherever the journal ends, the run goes on."""
    bad.succeeds()
    folder = folder_of(bad)
    whole = bad.root / "whole"
    shutil.copytree(folder, whole)
    events = len(list(folder.glob("journal/*.json")))
    for kept in range(events - 1, 0, -step):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        for path in sorted(folder.glob("journal/*.json"))[kept:]:
            path.unlink()

        code, told = said_by(bad)

        assert code == 0, told
        assert bad.bought == 1
        check_table(bad)


@pytest.fixture
def shared(router: RunningRouter) -> Iterator[Mistake]:
    """A job in a folder that everybody may read."""
    if os.getuid() != 0:
        pytest.skip("only root may become another account")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield mistake(Path(folder), router)


def as_a_stranger(bad: Mistake) -> subprocess.CompletedProcess[str]:
    job = bad.job_file()
    arguments = ["run", job, "--run-key", bad.run_key]
    return subprocess.run(
        [sys.executable, str(STRANGER), str(NOBODY), job, *arguments],
        cwd=bad.root,
        env=bad.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("is_readable", [False, True])
def test_the_run_of_another_account(shared: Mistake, *, is_readable: bool) -> None:
    began(shared, "journal.after_bought")
    if is_readable:
        for path in [shared.runs, *shared.runs.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)

    done = as_a_stranger(shared)

    told = done.stderr.partition("Error: ")[2]
    assert done.returncode == NO_RUN_FOLDER, done.stderr
    assert f"{'writing the journal' if is_readable else 'reading'}" in told
    assert "Permission denied" in told
    assert "same run key" in told
    assert "Traceback" not in done.stderr
    assert shared.bought == 1
    assert shared.succeeds()["rows"]["succeeded"] == ROWS
