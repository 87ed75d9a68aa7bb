"""The steps under other task runners: a block travels there and opens its own client."""

from pathlib import Path
from typing import Any

import pytest
from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_batchrouter import land_run, submit_job, wait_for_run

from batchrouter.testing import RunningRouter
from on_prefect.scene import batches_of, job_of, landed, make_table

# What Dask and Ray warn of is their own affair.
pytestmark = [pytest.mark.usefixtures("harness"), pytest.mark.filterwarnings("ignore")]


def runner_called(name: str) -> Any:
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=2)  # type: ignore[no-untyped-call]  # Prefect's own
    if name == "dask":
        dask = pytest.importorskip("prefect_dask")
        options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
        return dask.DaskTaskRunner(cluster_kwargs=options)
    ray = pytest.importorskip("prefect_ray")
    return ray.RayTaskRunner(init_kwargs={"num_cpus": 2, "include_dashboard": False})


@pytest.mark.parametrize(
    "name",
    [
        "threads",
        pytest.param("dask", marks=pytest.mark.drill),
        pytest.param("ray", marks=pytest.mark.drill),
    ],
)
def test_mapped(name: str, tmp_path: Path, credentials: Any, router: RunningRouter) -> None:
    days = [{"day": str(day)} for day in range(3)]
    for day in days:
        make_table(tmp_path, 4, f"day-{day['day']}")
    source = str(tmp_path / "day-${params.day}.parquet")
    job = job_of(Path("unused"), tmp_path / "labelled", source=source, params={"day": None})
    keys = [f"{name}-{day['day']}" for day in days]
    before = len(batches_of(router))

    @flow(task_runner=runner_called(name))
    def mapped() -> list[dict[str, Any]]:
        fixed = {"job": unmapped(job), "credentials": unmapped(credentials)}
        bought = submit_job.map(params=days, run_key=keys, **fixed)
        waited = wait_for_run.map(params=days, run_key=keys, wait_for=[bought], **fixed)
        return land_run.map(params=days, run_key=keys, wait_for=[waited], **fixed).result()

    receipts = mapped()

    assert [each["run_key"] for each in receipts] == keys
    assert len(batches_of(router)) == before + 3
    assert landed(job).num_rows == 12
