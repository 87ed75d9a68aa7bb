"""The providers' own packages beside ours: their clients read what our stand-ins answer.

The stand-ins are ours, so that a mistake about a provider's wire could stand in both the lane and
its test. Here each answer of the stand-in is read by the clients of OpenAI and Anthropic, with
strict validation. What the lanes ask is read in `test_lanes_published.py`.
"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from server.stand_in import KEY, Behaviour, StandIn

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
ANSWERED = {CHAT: ChatCompletion, RESPONSES: Response, EMBEDDINGS: CreateEmbeddingResponse}
SCHEMA = {
    "type": "object",
    "properties": {"echo": {"type": "string"}},
    "required": ["echo"],
    "additionalProperties": False,
}
ITEMS: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": [{"role": "user", "content": "one"}], "temperature": 0.2, "seed": 7},
        {
            "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": "[429] two"},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
            },
        },
    ],
    RESPONSES: [
        {"input": "three", "instructions": "Answer briefly.", "top_p": 0.5},
        {
            "input": [{"role": "user", "content": "four"}],
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}},
        },
    ],
    EMBEDDINGS: [{"input": "five", "dimensions": 2}],
}


@pytest.fixture
def openai_client(provider: StandIn) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key=KEY, base_url=provider.base_url, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def anthropic_client(provider: StandIn) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key=KEY, base_url=provider.origin, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def manifest(endpoint: str) -> bytes:
    lines = [
        {"custom_id": f"c{nth}", "method": "POST", "url": endpoint, "body": {"model": "m", **body}}
        for nth, body in enumerate(ITEMS[endpoint])
    ]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.mark.parametrize("endpoint", ITEMS)
def test_openais_client_reads_all_that_the_stand_in_says(
    openai_client: openai.OpenAI, provider: StandIn, endpoint: Any
) -> None:
    file = openai_client.files.create(file=("m.jsonl", manifest(endpoint)), purpose="batch")
    batch = openai_client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"k": "v"}
    )
    while batch.status == "in_progress":
        batch = openai_client.batches.retrieve(batch.id)
    listed = openai_client.batches.list(limit=5)
    files = [batch.output_file_id, batch.error_file_id]
    lines = [
        json.loads(line)
        for each in files
        if each is not None
        for line in openai_client.files.content(each).content.splitlines()
    ]
    deleted = openai_client.files.delete(file.id)

    assert batch.status == "completed"
    assert [each.id for each in listed.data] == [batch.id]
    assert deleted.deleted
    assert sorted(line["custom_id"] for line in lines) == [
        f"c{nth}" for nth, _ in enumerate(ITEMS[endpoint])
    ]
    for line in lines:
        if line["response"]["status_code"] == 200:
            ANSWERED[endpoint].model_validate(line["response"]["body"], strict=True)


@pytest.mark.parametrize("ending", ["failed", "expired", "cancelled"])
def test_openais_client_reads_how_else_a_batch_ends(
    openai_client: openai.OpenAI, provider: StandIn, ending: str
) -> None:
    provider.behaviour = {
        "failed": Behaviour(queue_full=1),
        "expired": Behaviour(expire_after=1),
        "cancelled": Behaviour(polls=1000),
    }[ending]
    file = openai_client.files.create(file=("m.jsonl", manifest(CHAT)), purpose="batch")
    batch = openai_client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h"
    )
    if ending == "cancelled":
        openai_client.batches.cancel(batch.id)
    while batch.status == "in_progress":
        batch = openai_client.batches.retrieve(batch.id)

    assert batch.status == ending
    if ending == "failed":
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert batch.errors.data[0].code == "token_limit_exceeded"


@pytest.mark.parametrize("ending", ["ended", "expired", "cancelled"])
def test_anthropics_client_reads_all_that_the_stand_in_says(
    anthropic_client: anthropic.Anthropic, provider: StandIn, ending: str
) -> None:
    texts = ["one", "[429] two", "[long] three"]
    asked: list[Any] = [
        {
            "custom_id": f"c{nth}",
            "params": {
                "model": "m",
                "max_tokens": 64,
                "messages": [{"role": "user", "content": text}],
            },
        }
        for nth, text in enumerate(texts)
    ]
    provider.behaviour = Behaviour(
        polls=1000 if ending == "cancelled" else 1,
        expire_after=1 if ending == "expired" else None,
    )
    batches = anthropic_client.messages.batches
    batch = batches.create(requests=asked)
    if ending == "cancelled":
        batches.cancel(batch.id)
    while batch.processing_status != "ended":
        batch = batches.retrieve(batch.id)

    assert [each.id for each in batches.list(limit=5)] == [batch.id]
    with anthropic_client.with_options(max_retries=0) as raw:
        said = raw.get(f"/v1/messages/batches/{batch.id}/results", cast_to=str)
    lines = [MessageBatchIndividualResponse.model_validate_json(line) for line in said.splitlines()]
    kinds = sorted(line.result.type for line in lines)
    assert (
        kinds
        == {
            "ended": ["errored", "errored", "succeeded"],
            "expired": ["expired", "expired", "succeeded"],
            "cancelled": ["canceled", "canceled", "succeeded"],
        }[ending]
    )
    assert batch.request_counts.processing == 0
    counted = batch.request_counts
    assert [counted.succeeded, counted.errored, counted.expired, counted.canceled] == [
        kinds.count(kind) for kind in ("succeeded", "errored", "expired", "canceled")
    ]
