"""`run_batch_job` and the tasks on Prefect's test server, with a real router."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client, unmapped
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext
from prefect_batchrouter import (
    BatchrouterCredentials,
    aland_run,
    aquote_job,
    arun_batch_job,
    asubmit_job,
    await_for_run,
    cancel_run,
    land_run,
    quote_job,
    run_batch_job,
    submit_job,
    wait_for_run,
)

from batchrouter import Job
from batchrouter.errors import BudgetExceededError, ConfigError, SourceError
from batchrouter.testing import RunningRouter
from on_prefect.scene import LABELS, batches_of, check_landed, job_of, landed, make_table

pytestmark = pytest.mark.usefixtures("harness")


def artifacts_of(flow_run_id: Any) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    return {each.key: each for each in found}


def test_the_whole_job_by_polling(any_job: dict[str, Any], credentials: Any) -> None:
    state = run_batch_job(any_job, credentials, wait="auto", return_state=True)

    receipt = state.result()
    check_landed(any_job)
    assert receipt["rows"]["succeeded"] == receipt["row_count"]
    assert float(receipt["settled_usd"]) <= float(receipt["quoted_usd"])
    shown = artifacts_of(state.state_details.flow_run_id)
    assert {
        "batchrouter-quote-label-queries",
        "batchrouter-batch-label-queries",
        "batchrouter-progress-label-queries",
        "batchrouter-receipt-label-queries",
    } <= set(shown)
    assert receipt["batch_ids"][0] in shown["batchrouter-batch-label-queries"].data
    assert receipt["settled_usd"] in shown["batchrouter-receipt-label-queries"].data


def test_the_whole_job_without_blocking_the_loop(job: dict[str, Any], credentials: Any) -> None:
    receipt = asyncio.run(arun_batch_job(job, credentials, wait="poll"))

    check_landed(job)
    assert receipt["outcome"] == "landed"


def test_steps_in_a_flow_of_ones_own(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    before = len(batches_of(router))

    @flow
    def by_steps() -> list[Any]:
        quoted = quote_job(job, credentials=credentials)
        submitted = submit_job(job, credentials=credentials, at_most_usd=quoted["total_usd"])
        waited = wait_for_run(job, credentials=credentials)
        receipt = land_run(job, credentials=credentials)
        return [quoted, submitted, waited, receipt, cancel_run(job, credentials=credentials)]

    quoted, submitted, waited, receipt, cancelled = by_steps()

    check_landed(job)
    assert quoted["item_count"] == submitted["item_count"] == 60
    assert waited["batch_ids"] == submitted["batch_ids"] == receipt["batch_ids"]
    assert float(receipt["settled_usd"]) <= float(quoted["total_usd"])
    assert cancelled == {
        "job": "label-queries",
        "run_key": receipt["run_key"],
        "cancelled": False,
        "stage": "landed",
    }
    assert len(batches_of(router)) == before + 1


def test_the_async_twins(job: dict[str, Any], credentials: Any) -> None:
    @flow
    async def by_steps() -> dict[str, Any]:
        await aquote_job(job, credentials=credentials)
        await asubmit_job(job, credentials=credentials)
        await await_for_run(job, credentials=credentials)
        return await aland_run(job, credentials=credentials)

    receipt = asyncio.run(by_steps())

    check_landed(job)
    assert receipt["rows"]["succeeded"] == 60


def test_mapped_over_ten_partitions(
    tmp_path: Path, credentials: Any, router: RunningRouter
) -> None:
    for day in range(10):
        make_table(tmp_path, 6, f"day-{day}")
    job = job_of(
        Path("unused"),
        tmp_path / "labelled",
        source=str(tmp_path / "day-${params.day}.parquet"),
        params={"day": None},
    )
    days = [{"day": str(day)} for day in range(10)]
    before = len(batches_of(router))

    @flow
    def mapped() -> list[dict[str, Any]]:
        fixed = {"job": unmapped(job), "credentials": unmapped(credentials)}
        bought = submit_job.map(params=days, **fixed)
        waited = wait_for_run.map(params=days, wait_for=[bought], **fixed)
        receipts = land_run.map(params=days, wait_for=[waited], **fixed)
        return receipts.result()

    receipts = mapped()

    assert len({each["run_key"] for each in receipts}) == 10
    assert len(batches_of(router)) == before + 10
    assert landed(job).num_rows == 60


def test_a_price_above_the_budget_buys_nothing(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    before = len(batches_of(router))

    with pytest.raises(BudgetExceededError):
        run_batch_job({**job, "budget": "0.000001"}, credentials)

    assert len(batches_of(router)) == before
    assert not Path(job["sink"]).exists()


def test_a_price_above_the_approved_one_buys_nothing(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    before = len(batches_of(router))

    @flow
    def approved_for_less() -> None:
        submit_job.with_options(retries=0)(job, credentials=credentials, at_most_usd="0.000001")

    with pytest.raises(BudgetExceededError):
        approved_for_less()

    assert len(batches_of(router)) == before


def test_suspend_is_refused_before_anything_is_bought(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    before = len(batches_of(router))

    with pytest.raises(ConfigError, match=r"cannot suspend: this flow run has no deployment"):
        run_batch_job(job, credentials, wait="suspend")

    assert len(batches_of(router)) == before


def test_a_subflow_polls(job: dict[str, Any], credentials: Any) -> None:
    @flow
    def outer() -> dict[str, Any]:
        with pytest.raises(ConfigError, match="this is a subflow"):
            run_batch_job(job, credentials, wait="suspend")
        return run_batch_job(job, credentials)

    assert outer()["rows"]["succeeded"] == 60


def test_one_run_key_buys_once_over_flow_runs(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    before = len(batches_of(router))

    first = run_batch_job(job, credentials, run_key="2026-11-22")
    second = run_batch_job(job, credentials, run_key="2026-11-22")

    assert first["batch_ids"] == second["batch_ids"]
    assert len(batches_of(router)) == before + 1
    check_landed(job)


def test_a_rebuy_is_granted_once_in_a_flow_run(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    run_batch_job(job, credentials, run_key="2026-11-22")
    before = len(batches_of(router))

    @flow(retries=1)
    def rebuys() -> None:
        run_batch_job(job, credentials, run_key="2026-11-22", on_rerun="rebuy")
        if FlowRunContext.get().flow_run.run_count < 2:  # type: ignore[union-attr]  # in a flow
            raise RuntimeError("the flow fails after its batch")

    rebuys()

    assert len(batches_of(router)) == before + 1


def test_an_error_that_no_retry_cures_is_not_retried(job: dict[str, Any], credentials: Any) -> None:
    job["source"] = "nowhere.parquet"

    with pytest.raises(SourceError):
        run_batch_job(job, credentials)  # a retry would wait for longer than the test may take


def test_failed_rows_are_shown_by_key_and_error(
    tmp_path: Path, router: RunningRouter, credentials: Any
) -> None:
    # No simulated answer fits an enum that the schema forbids to be answered.
    job = job_of(make_table(tmp_path), tmp_path / "labelled", on_null="skip")
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["Where is my card?", None, "A refund, please."]
    pq.write_table(pa.table({"query_id": [1, 2, 3], "text": texts}), job["source"])

    state = run_batch_job(job, credentials, return_state=True)

    assert state.result()["rows"] == {
        "succeeded": 2,
        "failed": 0,
        "invalid_output": 0,
        "missing": 0,
        "skipped": 1,
    }
    table = artifacts_of(state.state_details.flow_run_id)["batchrouter-failed-rows-label-queries"]
    assert '"query_id": 2' in table.data
    assert "skipped" in table.data
    assert "card" not in table.data


def test_a_job_in_memory(credentials: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    notes = pa.table({"query_id": [1, 2], "text": ["Call Ann.", "Pay the rent."]})
    job = Job.model_validate({**job_of(Path("unused"), tmp_path / "out"), "source": notes})

    assert run_batch_job(job, credentials)["rows"]["succeeded"] == 2


def test_an_account_from_the_environment(
    job: dict[str, Any], router: RunningRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHROUTER_BASE_URL", router.base_url)
    monkeypatch.setenv("BATCHROUTER_API_KEY", router.api_key)
    monkeypatch.setenv("BATCHROUTER_RUNS_URL", str(tmp_path / "runs"))
    monkeypatch.setenv("BATCHROUTER_POLL_INTERVAL_S", "0.5")

    assert run_batch_job(job)["rows"]["succeeded"] == 60


def test_labels_say_what_it_takes_to_cancel_and_no_secret(
    job: dict[str, Any], credentials: Any, router: RunningRouter
) -> None:
    state = run_batch_job(job, credentials, return_state=True)

    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
    told = [text for name, text in flow_run.labels.items() if name.startswith("batchrouter.run.")]
    assert len(told) == 1
    assert str(flow_run.id) in str(told[0])
    assert router.api_key not in flow_run.model_dump_json()
    assert LABELS[0] not in str(told[0])


def test_a_saved_block_by_its_name(job: dict[str, Any], credentials: Any) -> None:
    credentials.save("by-name", overwrite=True)

    assert run_batch_job(job, "by-name")["rows"]["succeeded"] == 60
    assert BatchrouterCredentials.load("by-name").runs_url == credentials.runs_url
