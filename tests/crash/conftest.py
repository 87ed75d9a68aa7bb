"""A router with the desk's lanes for each module, a proxy before it, and a desk for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchrouter.testing import FaultProxy, RunningRouter, running_router
from crash.desk import CONFIG, Desk


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router"), config=CONFIG) as running:
        yield running


@pytest.fixture
def proxy(router: RunningRouter) -> Iterator[FaultProxy]:
    with FaultProxy(router.base_url) as listening:
        yield listening


@pytest.fixture
def desk(router: RunningRouter, proxy: FaultProxy, tmp_path: Path) -> Iterator[Desk]:
    sitting = Desk(tmp_path, router, proxy.base_url)
    yield sitting
    sitting.close()
