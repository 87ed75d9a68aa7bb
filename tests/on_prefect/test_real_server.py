"""A flow that sleeps, on a real Prefect server with a process worker, and what wakes it.

One way of each in `make test`; `test_drills.py` goes through what can go wrong.
"""

from datetime import timedelta
from pathlib import Path

import pytest
from prefect_batchrouter import set_up_caretakers

from batchrouter.testing import RunningRouter
from on_prefect.actors import DEPLOYMENT
from on_prefect.scene import batches_of_run, check_landed, slow_job
from on_prefect.stage import POOL, Stage, until

pytestmark = pytest.mark.xdist_group("stage")


def test_suspended_and_woken_by_the_webhook(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    job = slow_job(tmp_path)

    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="hooked", wait="suspend")
    stage.wait_for(flow_run_id, "Suspended")
    until(lambda: not stage.pids_of(flow_run_id), "the end of its process", 20)
    done = stage.wait_for(flow_run_id, "Completed")

    check_landed(job)
    assert stage.count(flow_run_id, "Suspended") == 1
    assert [tag for tag in done.tags if tag.startswith("batchrouter:")] == []
    assert len(batches_of_run(accounts, str(flow_run_id))) == 1


def test_auto_sleeps_where_a_sweeper_wakes_it(
    stage: Stage, accounts: RunningRouter, tmp_path: Path
) -> None:
    set_up_caretakers(POOL, "silent", sweep_every=timedelta(seconds=5))
    job = slow_job(tmp_path)

    flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="silent")
    stage.wait_for(flow_run_id, "Suspended")
    stage.wait_for(flow_run_id, "Completed")

    check_landed(job)
    assert len(batches_of_run(accounts, str(flow_run_id))) == 1
