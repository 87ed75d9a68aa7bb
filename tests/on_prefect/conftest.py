"""One Prefect server for all tests in the harness, one router, and a table to label."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before Prefect is imported: neither a developer's profile nor a report over the network.
_ISOLATED = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
os.environ.update(_ISOLATED)
os.environ.pop("PREFECT_API_URL", None)

from batchrouter.testing import RunningRouter, running_router  # noqa: E402 - see above
from on_prefect.scene import BANKING77, LANES, job_of, make_table  # noqa: E402 - see above

if TYPE_CHECKING:
    from on_prefect.stage import Stage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Starting a Prefect server takes most of a minute: one worker has it, not each.
    for item in items:
        if "harness" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("harness"))


@pytest.fixture(scope="session", autouse=True)
def _prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(home / "results"))
        yield home


@pytest.fixture(scope="session")
def harness(_prefect_home: Path) -> Iterator[None]:
    """Prefect's own test server, in a process of its own on a temporary database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=280):
        yield


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture(scope="session")
def slow_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    """A router with a quick, a slow and a very long lane."""
    with running_router(tmp_path_factory.mktemp("slow-router"), config=LANES) as running:
        yield running


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stage"]:
    """A real Prefect server and its worker, in processes of their own."""
    from on_prefect.stage import running_stage

    with running_stage(tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.fixture(scope="session")
def accounts(stage: "Stage", slow_router: RunningRouter) -> RunningRouter:
    """The deployed flow, and two accounts: one with webhooks to a receiver, one without."""
    from on_prefect.actors import SECRET, deploy, save_account, start_receiver

    _, hook = start_receiver(stage)
    where = (stage, slow_router.base_url, slow_router.api_key)
    save_account("hooked", *where, webhook_url=hook, webhook_secret=SECRET)
    save_account("silent", *where)
    deploy()
    return slow_router


@pytest.fixture
def credentials(router: RunningRouter, tmp_path: Path) -> Any:
    from prefect_batchrouter import BatchrouterCredentials

    return BatchrouterCredentials(
        base_url=router.base_url,
        api_key=router.api_key,
        runs_url=str(tmp_path / "runs"),
        poll_interval_s=0.5,
    )


@pytest.fixture(params=["bundled", pytest.param("banking77", marks=pytest.mark.shared_data)])
def any_job(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A job on the bundled table, and the same on real queries where they are at hand."""
    if request.param == "bundled":
        return job_of(make_table(tmp_path), tmp_path / "labelled")
    labels = json.loads((BANKING77 / "categories.json").read_text())
    return job_of(BANKING77 / "train.parquet", tmp_path / "labelled", labels)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A job on a bundled table of 60 rows."""
    return job_of(make_table(tmp_path), tmp_path / "labelled")
