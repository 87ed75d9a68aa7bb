"""What every test stands on: the data folder beside the repo, and a clean environment."""

import os
from pathlib import Path

import pytest

collect_ignore = ["benchmarks", "fuzz"]
"""Programs for `make bench` and `make fuzz`; the second installs what its own import."""

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
