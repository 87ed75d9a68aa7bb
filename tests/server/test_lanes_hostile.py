"""Requests that would hurt: each fails alone, soon, and is billed nothing."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.simulated import SimulatedLane, SimulatedOptions
from batchrouter.server.lanes.submissions import SubmissionLog

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


def answers(tmp_path: Path, *bodies: Any, endpoint: str = CHAT) -> list[LaneAnswer]:
    log = SubmissionLog(tmp_path / "log.jsonl")
    lane = SimulatedLane("simulated-x", "m", SimulatedOptions(), log)
    items = [
        LaneItem(nth, endpoint, json.dumps(body).encode(), 64) for nth, body in enumerate(bodies)
    ]
    return list(lane.collect(lane.submit("k", items), items))


def chat(response_format: Any, user: str = "a" * 39 + "!") -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": user}],
        "response_format": response_format,
    }


def asking(schema: Any, user: str = "a" * 39 + "!") -> dict[str, Any]:
    return chat({"type": "json_schema", "json_schema": {"name": "o", "schema": schema}}, user)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "boolean"}
    for _ in range(depth):
        inner = {"type": "array", "items": inner, "minItems": 100}
    return inner


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "body",
    [
        chat({"type": "json_schema", "json_schema": "no object"}),
        asking({"type": "string", "pattern": "("}),
        asking({"type": "string", "pattern": "^(a+)+$"}),
        asking({"type": "string", "pattern": "^(?:a|a)*$"}),
        asking({"type": "string", "pattern": "(?x)^(a+) +$"}),
        asking({"type": "string", "pattern": "a*a*a*a*a*a*a*b"}),
        asking({"type": "string", "pattern": "a?" * 30 + "a" * 30}),
        asking({"$ref": "#"}),
        asking({"allOf": [{"$ref": "#"}]}),
        asking({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}),
        asking({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
        asking({"type": "string", "minLength": 10**10}),
        asking(nested(4)),
        asking({"type": "array", "minItems": 100, "items": {"const": "x" * 100_000}}),
        asking({"anyOf": [{"type": "null"}] * 300, "oneOf": [{"type": "null"}] * 300}),
        asking({"type": "number", "multipleOf": 1e-320}),
    ],
    ids=lambda body: json.dumps(body["response_format"])[:80],
)
def test_a_hostile_request_fails_alone_and_soon(tmp_path: Path, body: Any) -> None:
    usual = asking({"type": "boolean"})
    started = time.monotonic()

    first, hostile, last = answers(tmp_path, usual, body, usual)

    assert time.monotonic() - started < 60
    assert first.body is not None
    assert last.body is not None
    assert hostile.error_code == "invalid_input"
    assert (hostile.input_tokens, hostile.output_tokens) == (0, 0)


def test_a_text_full_of_digits_is_answered(tmp_path: Path) -> None:
    [answer] = answers(tmp_path, asking({"type": "integer"}, user="9" * 5_000))

    assert answer.body is not None


def test_an_item_of_many_texts_to_embed_is_answered_up_to_a_size(tmp_path: Path) -> None:
    few, many = answers(
        tmp_path, {"input": ["a"] * 40}, {"input": ["a"] * 200_000}, endpoint=EMBEDDINGS
    )

    assert len(json.loads(few.body or b"")["data"]) == 40
    assert many.error_code == "invalid_input"
    assert "numbers at most" in many.error_message
