"""What users write, as pyright strict sees it: `make check` reads this file, nothing runs it."""

from decimal import Decimal
from typing import assert_type

from batchrouter import AsyncClient, Client, Done, Job, Receipt, Run, Settings, Waiting
from batchrouter.api.models import Batch, BatchPage, ManifestFile, Quote
from batchrouter.errors import BatchrouterError
from batchrouter.job import Chat, Embedding, Parts, Raw, Route, Workflow
from batchrouter.testing import FaultProxy, RunningRouter, running_router


def label_tickets() -> Receipt:
    job = Job.from_file("job.yaml", params={"day": "2026-11-22"})
    run = Run.open(job, run_key="2026-11-22", runs_url="runs")
    step = run.advance()
    assert_type(step, Waiting | Done)
    if isinstance(step, Waiting):
        assert_type(step.batch_ids, tuple[str, ...])
    receipt = run.execute(wait="poll", timeout_s=60)
    assert_type(receipt, Receipt)
    assert_type(receipt.quoted_usd, Decimal)
    assert_type(receipt.settled_usd, Decimal | None)
    assert_type(receipt.rows, dict[str, int])
    return receipt


async def label_tickets_async(job: Job) -> Receipt:
    run = Run.open(job, run_key="2026-11-22")
    assert_type(await run.aadvance(), Waiting | Done)
    return await run.aexecute()


def job_in_python() -> Job:
    return Job(
        name="tickets",
        source="tickets.parquet",
        key="ticket_id",
        request={"kind": "chat", "user": "{body}"},
        route={"models": ["gpt-4o-mini"]},
        budget="25.00",
        sink="labelled",
    )


def job_of_parts() -> Job:
    chat = Chat(user="{body}", output={"urgent": {"type": "boolean"}})
    Embedding(input="{body}", parameters={"dimensions": 256})
    Workflow(input={"body": "{body}"})
    Raw(body="payload")
    Route(workflow="triage@v1")
    return Job(
        name="tickets",
        source="tickets.parquet",
        key=["ticket_id"],
        request=chat,
        route=Route(models=["gpt-4o-mini"], allowed_regions=["eu"]),
        budget=Decimal(25),
        sink="labelled",
        parts=Parts(max_items=1000),
    )


def buy_by_hand() -> None:
    with Client(base_url="http://127.0.0.1:8765", api_key="bk_live_1") as client:
        quote = client.quote_model(["gpt-4o-mini"], estimated_items=10)
        assert_type(quote, Quote)
        assert_type(quote.quoted_total.amount, Decimal)
        file = client.upload_manifest("manifest.jsonl")
        assert_type(file, ManifestFile)
        body = {"quote_id": quote.quote_id, "input_file_id": file.file_id}
        batch = client.submit_batch(body, idempotency_key="tickets/2026-11-22")
        assert_type(batch, Batch)
        assert_type(batch.is_terminal, bool)
        assert_type(client.list_batches(), BatchPage)


async def read_by_hand() -> Batch:
    async with AsyncClient(Settings.from_env()) as client:
        return await client.retrieve_batch("batch_1", include_billing_receipt=True)


def on_a_router() -> None:
    with running_router() as router, FaultProxy(router.base_url) as proxy:
        assert_type(router, RunningRouter)
        assert_type(router.settings(base_url=proxy.base_url), Settings)
        try:
            label_tickets()
        except BatchrouterError as error:
            assert_type(error.retryable, bool)
            assert_type(error.code, str)
