"""What lanes ask is what the providers publish: each body and form, as the stand-in received it.

Read strictly, by the request types of the packages `openai` and `anthropic` (`published.py`).
Mistral's are in neither.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.messages.batch_create_params import BatchCreateParams as MessageBatch
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import ValidationError

from batchrouter import Client
from batchrouter.server.lanes.lane import Lane, LaneItem
from batchrouter.testing import running_router
from server.published import accept, accept_upload
from server.stand_in import KEY, StandIn
from server.test_lanes_batch import run
from server.test_lanes_whole import config, ended, lane

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
ASKED = {
    CHAT: CompletionCreateParamsNonStreaming,
    RESPONSES: ResponseCreateParamsNonStreaming,
    EMBEDDINGS: EmbeddingCreateParams,
}
SAMPLING = ("temperature", "top_p")
"""Not in the package any more: it sends API version 2026-10-21, which refuses them. The lane sends
2023-06-01, whose reference has them."""
SCHEMA = {
    "type": "object",
    "properties": {"echo": {"type": "string"}},
    "required": ["echo"],
    "additionalProperties": False,
}
PICTURE = "data:image/png;base64,iVBORw0KGgo="
BODIES: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": [{"role": "user", "content": "one"}], "temperature": 0.2, "max_tokens": 9},
        {
            "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": "two"},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
            },
        },
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Look twice."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": PICTURE}},
                        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                        {"type": "text", "text": "three"},
                    ],
                },
                {"role": "assistant", "content": "A dog."},
                {"role": "user", "content": "Sure?"},
            ],
            "stop": ["###"],
            "seed": 7,
            "n": 1,
            "response_format": {"type": "json_object"},
        },
    ],
    RESPONSES: [
        {"input": "four", "instructions": "Answer briefly.", "top_p": 0.5},
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "detail": "auto", "image_url": PICTURE},
                        {"type": "input_text", "text": "five"},
                    ],
                }
            ],
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}},
        },
    ],
    EMBEDDINGS: [{"input": "six", "dimensions": 2}],
}
CHATS = {CHAT: BODIES[CHAT], RESPONSES: BODIES[RESPONSES]}
WORKFLOW = {
    "slug": "label",
    "version": 1,
    "fields": [{"name": "text"}],
    "system": "Label what is said.",
    "user": "Label this: {text}",
    "output_schema": SCHEMA,
    "models": ["m"],
}


def items_of(endpoint: str) -> list[LaneItem]:
    bodies = [json.dumps({"model": "ours", **body}).encode() for body in BODIES[endpoint]]
    return [LaneItem(nth, endpoint, body, 64) for nth, body in enumerate(bodies)]


def manifests(endpoints: Iterable[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What is asked, as lines of the native dialect and of OpenAI's, one manifest an endpoint."""
    for endpoint in endpoints:
        operation = "embeddings" if endpoint == EMBEDDINGS else "responses"
        yield (
            operation,
            [
                {"customer_item_id": f"c{nth}", "operation": operation, "input": body}
                for nth, body in enumerate(BODIES[endpoint])
                if not isinstance(body.get("input"), list)  # which only OpenAI's files may hold
            ],
        )
        line = {"method": "POST", "url": endpoint}
        yield (
            operation,
            [
                {"custom_id": f"c{nth}", **line, "body": {"model": "m", **body}}
                for nth, body in enumerate(BODIES[endpoint])
            ],
        )


def posts(provider: StandIn, path: str) -> list[bytes]:
    return [body for posted, body in provider.posted if posted == path]


def accepted_by_openai(provider: StandIn) -> int:
    """Read all that a lane over OpenAI's batch API has sent; returns the number of items."""
    creates = posts(provider, "/v1/batches")
    for body in creates:
        accept(BatchCreateParams, body)
    assert len(provider.forms) == len(creates) == len(provider.batches)
    lines = [line for form in provider.forms for line in form["file"].splitlines()]
    for form in provider.forms:
        accept_upload(form)
    for line in map(json.loads, lines):
        assert line.keys() == {"custom_id", "method", "url", "body"}
        assert line["method"] == "POST"
        accept(ASKED[line["url"]], json.dumps(line["body"]).encode())
    return len(lines)


def accepted_by_anthropic(provider: StandIn) -> int:
    """Read all that a lane over Anthropic's batches has sent; returns the number of items."""
    count = 0
    for body in posts(provider, "/v1/messages/batches"):
        asked = json.loads(body)
        for request in asked["requests"]:
            for name in SAMPLING:
                request["params"].pop(name, None)
            for tool in request["params"].get("tools", ()):
                # The type takes any object for a schema; the reference wants this of it.
                assert tool["input_schema"]["type"] == "object"
        accept(MessageBatch, json.dumps(asked).encode())
        count += len(asked["requests"])
    assert not provider.forms
    return count


def accepted_by_a_server(provider: StandIn) -> int:
    """Read what was asked one by one; returns the number of requests."""
    for path, body in provider.posted:
        accept(ASKED[path], body)
    return len(provider.posted)


@pytest.mark.parametrize("endpoint", BODIES)
def test_openai_accepts_what_a_lane_uploads_and_creates(
    lane_of: Callable[..., Lane], provider: StandIn, endpoint: str
) -> None:
    run(lane_of("openai-batch"), items_of(endpoint))

    assert accepted_by_openai(provider) == len(BODIES[endpoint])


@pytest.mark.parametrize("endpoint", CHATS)
def test_anthropic_accepts_what_a_lane_creates(
    lane_of: Callable[..., Lane], provider: StandIn, endpoint: str
) -> None:
    run(lane_of("anthropic-batch"), items_of(endpoint))

    assert accepted_by_anthropic(provider) == len(BODIES[endpoint])


def test_an_image_that_anthropic_does_not_take_is_refused_for_its_item_alone(
    lane_of: Callable[..., Lane], provider: StandIn
) -> None:
    urls = [PICTURE, "data:image/bmp;base64,Qk0=", "data:IMAGE/PNG;name=a.png;base64,iVBORw0KGgo="]
    items = [
        LaneItem(nth, CHAT, json.dumps({"messages": [picture(url, nth)]}).encode(), 64)
        for nth, url in enumerate(urls)
    ]

    answers = run(lane_of("anthropic-batch"), items)

    assert [answer.error_code for answer in answers] == [None, "invalid_input", None]
    assert "'image/bmp'" in answers[1].error_message
    assert accepted_by_anthropic(provider) == 2


def picture(url: str, nth: int) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": f"What is {nth}?"},
    ]
    return {"role": "user", "content": parts}


@pytest.mark.parametrize("has_responses", [False, True])
@pytest.mark.parametrize("endpoint", BODIES)
def test_a_plain_server_is_asked_as_openai_publishes_it(
    lane_of: Callable[..., Lane], provider: StandIn, endpoint: str, has_responses: Any
) -> None:
    run(lane_of("openai-http", has_responses=has_responses), items_of(endpoint))

    assert accepted_by_a_server(provider) == len(BODIES[endpoint])
    as_chats = endpoint == RESPONSES and not has_responses
    assert {path for path, _ in provider.posted} == {CHAT if as_chats else endpoint}


ACCEPTED = {
    "openai-batch": accepted_by_openai,
    "anthropic-batch": accepted_by_anthropic,
    "openai-http": accepted_by_a_server,
}


@pytest.mark.parametrize("adapter", ACCEPTED)
def test_both_dialects_of_a_manifest_become_requests_that_are_accepted(
    provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    endpoints = CHATS if adapter == "anthropic-batch" else BODIES
    served = config(lane("one", adapter, provider))
    count = 0
    with (
        running_router(tmp_path / "router", config=served) as router,
        Client(router.settings()) as client,
    ):
        for task, lines in manifests(endpoints):
            content = "".join(json.dumps(line) + "\n" for line in lines).encode()
            file = client.upload_manifest(partial(io.BytesIO, content), filename="m.jsonl")
            quote = client.quote_model(
                ["m"],
                task=task,
                estimated_items=len(lines),
                estimated_input_tokens=400,
                estimated_output_tokens=0 if task == "embeddings" else 64,
                max_output_tokens=64,
            )
            batch = client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id})
            assert ended(client, batch.id).counts.completed == len(lines)
            count += len(lines)

    assert ACCEPTED[adapter](provider) == count


@pytest.mark.parametrize("adapter", ACCEPTED)
def test_a_workflow_becomes_requests_that_are_accepted(
    provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    served = {**config(lane("one", adapter, provider)), "workflows": [WORKFLOW]}
    item = {"customer_item_id": "a", "input": {"text": "My card is lost."}}
    with (
        running_router(tmp_path / "router", config=served) as router,
        Client(router.settings()) as client,
    ):
        quote = client.quote_workflow("label@v1", estimated_items=1)
        batch = client.submit_batch({"quote_id": quote.quote_id, "items": [item]})
        assert ended(client, batch.id).counts.completed == 1

    assert ACCEPTED[adapter](provider) == 1


HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CREATE = {"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h"}
ONE = {"custom_id": "a", "params": {**HELLO, "max_tokens": 9}}


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (CompletionCreateParamsNonStreaming, HELLO, {"tempreature": 1}),
        (CompletionCreateParamsNonStreaming, HELLO, {"max_completion_tokens": "9"}),
        (CompletionCreateParamsNonStreaming, HELLO, {"messages": [{"role": "user"}]}),
        (CompletionCreateParamsNonStreaming, HELLO, {"messages": [{"role": "me", "content": "a"}]}),
        (
            CompletionCreateParamsNonStreaming,
            HELLO,
            {"messages": [{"role": "user", "content": "a", "tone": "kind"}]},
        ),
        (
            ResponseCreateParamsNonStreaming,
            {"model": "m", "input": "hello"},
            {"text": {"format": {"type": "json_schema", "name": "answer"}}},
        ),
        (EmbeddingCreateParams, {"model": "m", "input": "hello"}, {"input": None}),
        (BatchCreateParams, CREATE, {"completion_window": "1h"}),
        (BatchCreateParams, CREATE, {"metadata": {"nth": 1}}),
        (MessageBatch, {"requests": [ONE]}, {"requests": [{"custom_id": "a"}]}),
        (
            MessageBatch,
            {"requests": [ONE]},
            {"requests": [{**ONE, "params": {**HELLO, "max_completion_tokens": 9}}]},
        ),
        (
            MessageBatch,
            {"requests": [ONE]},
            {"requests": [{**ONE, "params": {**ONE["params"], "tool_choice": {"type": "tool"}}}]},
        ),
    ],
)
def test_a_request_that_is_wrong_anywhere_is_refused(
    kind: Any, right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    accept(kind, json.dumps(right).encode())
    with pytest.raises(ValidationError):
        accept(kind, json.dumps({**right, **wrong}).encode())


@pytest.mark.parametrize("wrong", [{"purpose": b"btch"}, {"expires": b"1"}])
def test_an_upload_that_is_wrong_is_refused(wrong: dict[str, bytes]) -> None:
    right = {"purpose": b"batch", "file": b"{}"}
    accept_upload(right)
    with pytest.raises(ValidationError):
        accept_upload(right | wrong)
    with pytest.raises(ValidationError):
        accept_upload({"purpose": b"batch"})
