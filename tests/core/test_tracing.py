"""Spans and request ids, from a run through the client to the router and its log."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrouter import AsyncClient, Client, Job, Run
from batchrouter.errors import APIError, NotFoundError, SourceError, TransportError
from batchrouter.testing import RunningRouter, running_router
from crash.desk import CONFIG
from crash.test_bad_deliveries import Receiver

SET_UP = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

out = open({traces!r}, "a", buffering=1)
to_line = lambda span: span.to_json(indent=None) + "\\n"
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=to_line)))
trace.set_tracer_provider(provider)
"""
PROMPT = "a prompt that no span may hold"


@pytest.fixture(scope="module")
def exporter() -> Iterator[Any]:
    """Everything that this process has finished, with OpenTelemetry set up as a user would."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    yield kept
    kept.shutdown()


@pytest.fixture
def spans(exporter: Any) -> Any:
    exporter.clear()
    return exporter.get_finished_spans


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router"), config=CONFIG) as running:
        yield running


def job(root: Path) -> Job:
    source = root / "rows.jsonl"
    source.write_text("".join(f'{{"id": {row}, "text": "{PROMPT} {row}"}}\n' for row in range(5)))
    return Job.model_validate({
        "name": "label",
        "source": str(source),
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["quick"]},
        "budget": "5.00",
        "sink": str(root / "labelled"),
    })  # fmt: skip


def log_of(router: RunningRouter) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in router.log_path.read_text().splitlines() if line[:1] == "{"
    ]


def test_a_run_is_a_span_a_step_with_each_call_inside(
    router: RunningRouter, spans: Any, tmp_path: Path
) -> None:
    with Run.open(
        job(tmp_path), run_key="1", settings=router.settings(runs_url=str(tmp_path / "runs"))
    ) as run:
        run.execute(timeout_s=60)

    made = {span.name: span for span in spans()}
    by_id = {span.context.span_id: span.name for span in spans()}
    assert {"run.build", "run.buy", "run.watch", "run.collect", "run.land"} <= set(made)
    assert made["run.land"].attributes["batchrouter.job.name"] == "label"
    assert made["run.land"].attributes["batchrouter.run.key"] == "1"
    for name in ("POST /v1/quotes/model", "POST /v1/batches/input-manifests", "POST /v1/batches"):
        assert by_id[made[name].parent.span_id] == "run.buy"
    submit = made["POST /v1/batches"]
    port = int(router.base_url.rsplit(":", 1)[1])
    assert submit.kind.name == "CLIENT"
    assert submit.instrumentation_scope.name == "batchrouter"
    assert {
        "http.request.method": "POST",
        "http.response.status_code": 202,
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"{router.base_url}/v1/batches",
        "url.template": "/v1/batches",
    }.items() <= submit.attributes.items()


def test_no_span_holds_a_secret_a_prompt_or_a_signed_url(
    router: RunningRouter, spans: Any, tmp_path: Path
) -> None:
    with Run.open(
        job(tmp_path), run_key="2", settings=router.settings(runs_url=str(tmp_path / "runs"))
    ) as run:
        run.execute(timeout_s=60)

    written = "".join(span.to_json() for span in spans())
    fetched = [span for span in spans() if span.name == "GET"]
    assert fetched
    assert all("url.full" not in span.attributes for span in fetched)
    for secret in (router.api_key, "bk_live", PROMPT, "signature", "artifacts/"):
        assert secret not in written


def test_a_refusal_and_a_failure_are_named_and_not_quoted(
    router: RunningRouter, spans: Any
) -> None:
    with Client(router.settings()) as client, pytest.raises(NotFoundError):
        client.retrieve_batch("batch_0")
    nobody = router.settings(base_url="http://127.0.0.1:9", max_attempts=2, retry_wait_s=0.01)
    with Client(nobody) as client, pytest.raises(TransportError):
        client.retrieve_batch("batch_0")

    refused, first, again = spans()
    assert refused.name == "GET /v1/batches/{batch_id}"
    assert refused.attributes["error.type"] == "404"
    assert first.attributes["error.type"] == again.attributes["error.type"] == "transport_error"
    assert {span.status.status_code.name for span in spans()} == {"ERROR"}
    assert [span.attributes.get("http.request.resend_count") for span in spans()] == [None, None, 1]
    assert not [span for span in spans() if span.events or span.status.description]


def test_an_exception_of_a_step_is_named_and_not_quoted(
    router: RunningRouter, spans: Any, tmp_path: Path
) -> None:
    broken = job(tmp_path).model_copy(update={"source": str(tmp_path / "not-there.jsonl")})
    settings = router.settings(runs_url=str(tmp_path / "runs"))
    with Run.open(broken, run_key="3", settings=settings) as run, pytest.raises(SourceError):
        run.advance()

    (failed,) = spans()
    assert (failed.name, failed.attributes["error.type"]) == ("run.build", "source_error")
    assert "not-there" not in failed.to_json()


def test_the_async_client_makes_the_same_spans(
    router: RunningRouter, spans: Any, tmp_path: Path
) -> None:
    with Run.open(
        job(tmp_path), run_key="4", settings=router.settings(runs_url=str(tmp_path / "runs"))
    ) as run:
        receipt = run.execute(timeout_s=60)
    (batch_id,) = receipt.batch_ids

    def shown() -> list[Any]:
        drop = {"batchrouter.request.id"}
        return [
            (span.name, {k: v for k, v in span.attributes.items() if k not in drop})
            for span in spans()
        ]

    async def ask() -> None:
        async with AsyncClient(router.settings()) as client:
            await client.retrieve_batch(batch_id)
            await client.download_artifact(batch_id, tmp_path / "a")

    spans.__self__.clear()
    with Client(router.settings()) as client:
        client.retrieve_batch(batch_id)
        client.download_artifact(batch_id, tmp_path / "b")
    blocking = shown()
    spans.__self__.clear()
    asyncio.run(ask())

    assert shown() == blocking
    assert [name for name, _ in blocking] == [
        "GET /v1/batches/{batch_id}",
        "GET /v1/batches/{batch_id}/artifact-url",
        "GET",
    ]


def test_the_routers_spans_are_children_of_the_callers_and_its_log_names_both(
    spans: Any, tmp_path: Path
) -> None:
    traces = tmp_path / "spans.jsonl"
    (tmp_path / "sitecustomize.py").write_text(SET_UP.format(traces=str(traces)))
    receiver = Receiver(tmp_path)
    try:
        path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        with running_router(tmp_path / "router", config=CONFIG, env=path) as router:
            settings = router.settings(
                runs_url=str(tmp_path / "runs"),
                webhook_url=receiver.url,
                webhook_secret=receiver.secret,
                inbox_url=receiver.inbox_url,
            )
            with Run.open(job(tmp_path), run_key="5", settings=settings) as run:
                receipt = run.execute(timeout_s=60)
            give_up_at = time.monotonic() + 30
            while '"http.response.status_code": 204' not in traces.read_text():
                assert time.monotonic() < give_up_at, "no webhook was delivered"
                time.sleep(0.05)
            log = log_of(router)
    finally:
        receiver.stop()

    (batch_id,) = receipt.batch_ids
    theirs = [json.loads(line) for line in traces.read_text().splitlines()]
    (submit,) = [span for span in spans() if span.name == "POST /v1/batches"]
    (answered,) = [span for span in theirs if span["name"] == "POST /v1/batches"]
    assert answered["kind"] == "SpanKind.SERVER"
    assert int(answered["parent_id"], 16) == submit.context.span_id
    assert int(answered["context"]["trace_id"], 16) == submit.context.trace_id
    assert {
        "http.route": "/v1/batches",
        "http.response.status_code": 202,
        "url.path": "/v1/batches",
        "url.scheme": "http",
        "batchrouter.batch.id": batch_id,
        "batchrouter.request.id": submit.attributes["batchrouter.request.id"],
    }.items() <= answered["attributes"].items()

    lines = [each for each in log if each["message"] == "request"]
    (line,) = [each for each in lines if each.get("batch_id") == batch_id]
    assert line["request_id"] == submit.attributes["batchrouter.request.id"]
    assert line["trace_id"] == answered["context"]["trace_id"].removeprefix("0x")
    assert line["key_id"].startswith("key_")

    ids = {"batchrouter.batch.id": batch_id}
    work = {span["name"]: span["attributes"] for span in theirs if "batch." in span["name"]}
    assert work == {
        "batch.plan": ids,
        "batch.chunk": {**ids, "batchrouter.chunk.number": 0},
        "batch.finish": ids,
    }
    deliveries = [span["attributes"] for span in theirs if span["name"] == "POST webhook"]
    assert 204 in {each.get("http.response.status_code") for each in deliveries}
    assert all(each["batchrouter.event.id"].startswith("evt_") for each in deliveries)
    for secret in (router.api_key, receiver.secret, PROMPT, "signature", "/hook"):
        assert secret not in traces.read_text()


def test_every_call_has_one_request_id_at_the_client_in_the_error_and_in_the_routers_log(
    router: RunningRouter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="batchrouter.api")
    with Client(router.settings()) as client, pytest.raises(APIError) as caught:
        client.retrieve_batch("batch_0")

    request_id = caught.value.request_id
    (line,) = [each for each in log_of(router) if each.get("request_id") == request_id]
    assert (line["path"], line["status"]) == ("/v1/batches/batch_0", 404)
    assert request_id in str(caught.value)
    assert f"GET /v1/batches/batch_0: 404 (request {request_id})" in caplog.messages


def test_a_call_that_is_made_again_is_told_with_its_id(
    router: RunningRouter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="batchrouter.api")
    nobody = router.settings(base_url="http://127.0.0.1:9", max_attempts=2, retry_wait_s=0.01)
    with Client(nobody) as client, pytest.raises(TransportError) as caught:
        client.retrieve_batch("batch_0")

    (told,) = caplog.messages
    request_id = str(caught.value).rpartition("(request ")[2].removesuffix(")")
    assert len(request_id) == 32
    assert f"(request {request_id}): asked again in 0.0 s" in told


@pytest.mark.parametrize("is_there", [True, False])
def test_the_library_is_imported_with_the_first_call_if_it_is_there_at_all(
    router: RunningRouter, *, is_there: bool
) -> None:
    script = f"""
import sys
if not {is_there}:
    sys.modules["opentelemetry"] = None
from batchrouter import Client, Job, Run
loaded = lambda: [name for name in sys.modules if name.startswith("opentelemetry.")]
assert not loaded()
with Client(base_url={router.base_url!r}, api_key={router.api_key!r}) as client:
    print(client.list_batches().data is not None, bool(loaded()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["True", str(is_there)], done.stderr
