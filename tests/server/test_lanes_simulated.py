"""The simulated provider: deterministic, true to every schema, and with a memory of its own."""

import base64
import json
import math
import re
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes import submissions
from batchrouter.server.lanes.generating import Drawing, SchemaGenerator, UnsupportedSchemaError
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem
from batchrouter.server.lanes.simulated import SimulatedLane, SimulatedOptions
from batchrouter.server.lanes.submissions import SubmissionLog

CHAT = "/v1/chat/completions"


def make_lane(tmp_path: Path, **options: Any) -> SimulatedLane:
    log = SubmissionLog(tmp_path / "log.jsonl")
    return SimulatedLane("simulated-x", "m", SimulatedOptions.from_mapping(options), log)


def ask(lane: SimulatedLane, body: Any, *, endpoint: str = CHAT, cap: int = 64) -> LaneAnswer:
    item = LaneItem(0, endpoint, json.dumps(body).encode(), cap)
    key = f"k{len(lane.__dict__)}"
    return next(lane.collect(lane.submit(key, [item]), [item]))


def chat(user: str, schema: Any = None, *, system: str = "") -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]
    }
    if schema is not None:
        asked = {"name": "o", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": asked}
    return body


def text_of(answer: LaneAnswer) -> str:
    assert answer.body is not None, answer.error_message
    return json.loads(answer.body)["choices"][0]["message"]["content"]


def matches(value: Any, schema: Any, root: Any) -> bool:  # noqa: PLR0911 - one line a keyword
    """A small validator, written independently of the generator."""
    if "$ref" in schema:
        target = root
        for step in schema["$ref"][2:].split("/"):
            target = target[step]
        return matches(value, target, root)
    if "anyOf" in schema:
        return any(matches(value, one, root) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    pythons = {"string": str, "integer": int, "number": (int, float), "boolean": bool,
               "object": dict, "array": list, "null": type(None)}  # fmt: skip
    if not any(
        isinstance(value, pythons[kind]) and (kind == "boolean") == isinstance(value, bool)
        for kind in kinds
    ):
        return False
    if isinstance(value, dict):
        return set(value) == set(schema["properties"]) and all(
            matches(value[name], one, root) for name, one in schema["properties"].items()
        )
    if isinstance(value, list):
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
        unique = not schema.get("uniqueItems") or len(value) == len({*map(json.dumps, value)})
        return size and unique and all(matches(one, schema["items"], root) for one in value)
    if isinstance(value, str):
        size = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6)
        return size and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
        high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        return low <= value <= high and value not in {
            schema.get("exclusiveMinimum"),
            schema.get("exclusiveMaximum"),
        }
    return True


NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "child": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["name", "child"],
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "string", "minLength": 30, "maxLength": 40},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
    {"type": "integer", "minimum": 3, "maximum": 3},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "minimum": -20, "maximum": -10},
    {"type": "number", "minimum": 0.2, "maximum": 0.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": ["string", "null"]},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 2, "uniqueItems": True},
    {"type": "array", "items": {"type": "number"}, "maxItems": 0},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}}]},
    {"enum": [1, None, "x"]},
    {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    {
        "type": "object",
        "properties": {
            "deep": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
            "list": {"type": "array", "items": {"type": "object", "properties": {}}},
        },
        "required": ["deep", "list"],
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_values_are_true_to_the_schema(schema: dict[str, Any]) -> None:
    generator = SchemaGenerator(schema)

    for seed in range(300):
        value = generator.generate(Drawing(seed, f"I was charged {seed} dollars twice"))
        assert matches(json.loads(json.dumps(value)), schema, schema), value


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("date", r"^2026-\d\d-\d\d$"),
        ("date-time", r"^2026-\d\d-\d\dT\d\d:\d\d:\d\dZ$"),
        ("email", r"^\S+@example\.com$"),
        ("uuid", r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$"),
        ("uri", r"^https://example\.com/"),
        ("ipv4", r"^192\.0\.2\.\d+$"),
    ],
)
def test_formats_are_kept(form: str, pattern: str) -> None:
    generator = SchemaGenerator({"type": "string", "format": form})

    assert re.search(pattern, generator.generate(Drawing(3, "anything")))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "minLength": 5, "maxLength": 4},
        {"$ref": "#/$defs/absent"},
        {"$ref": "https://example.com/schema"},
        {"enum": []},
        {"type": "tuple"},
    ],
)
def test_schemas_that_nothing_satisfies_are_named(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSchemaError):
        SchemaGenerator(schema)


def test_the_label_is_chosen_by_the_users_words(tmp_path: Path) -> None:
    labels = ["card_arrival", "exchange_rate", "lost_or_stolen_card", "top_up_failed"]
    schema = {"type": "object", "properties": {"intent": {"enum": labels}}}
    lane = make_lane(tmp_path)
    # The system prompt names every label: only what the user says counts.
    system = "Choose one of: " + ", ".join(labels)

    for user, label in {
        "When will my new card arrive?": "card_arrival",
        "What rate do you use for exchanging currencies?": "exchange_rate",
        "Somebody has stolen my card!": "lost_or_stolen_card",
        "Why has my top-up failed": "top_up_failed",
    }.items():
        found = json.loads(text_of(ask(lane, chat(user, schema, system=system))))
        assert found == {"intent": label}


def test_answers_depend_on_seed_and_content_alone(tmp_path: Path) -> None:
    bodies = [chat(f"question {nth}") for nth in range(20)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    first = [ask(make_lane(tmp_path / "a"), body).body for body in bodies]
    again = [ask(make_lane(tmp_path / "b"), body).body for body in reversed(bodies)]
    other = [ask(make_lane(tmp_path / "b", seed=2), body).body for body in bodies]

    assert first == again[::-1]
    assert first != other


def test_a_free_answer_is_cut_at_its_cap(tmp_path: Path) -> None:
    answer = ask(make_lane(tmp_path), chat("word " * 100), cap=5)

    body = json.loads(answer.body or b"")
    assert body["choices"][0]["finish_reason"] == "length"
    assert answer.output_tokens <= 5
    assert body["usage"]["completion_tokens"] == answer.output_tokens


def test_no_answer_costs_more_than_its_worst_case(tmp_path: Path) -> None:
    lane = make_lane(tmp_path)
    for cap in (0, 1, 10, 1000):
        for body in (chat("word " * 200), chat("x", {"type": "string", "minLength": 900})):
            item = LaneItem(0, CHAT, json.dumps(body).encode(), cap)
            answer = ask(lane, body, cap=cap)
            most_input, most_output = lane.worst_case(item)
            assert answer.input_tokens <= most_input
            assert answer.output_tokens <= min(most_output, cap)


def test_embeddings_have_length_one(tmp_path: Path) -> None:
    lane = make_lane(tmp_path)
    url = "/v1/embeddings"

    plain = json.loads(ask(lane, {"input": "hello"}, endpoint=url).body or b"")
    many = json.loads(ask(lane, {"input": ["a", "b"], "dimensions": 3}, endpoint=url).body or b"")
    coded = {"input": "hello", "encoding_format": "base64"}
    packed = json.loads(ask(lane, coded, endpoint=url).body or b"")["data"][0]["embedding"]

    vector = plain["data"][0]["embedding"]
    assert len(vector) == 1536
    assert math.fsum(x * x for x in vector) == pytest.approx(1, abs=1e-6)
    assert [len(one["embedding"]) for one in many["data"]] == [3, 3]
    assert many["data"][0]["embedding"] != many["data"][1]["embedding"]
    assert array("f", base64.b64decode(packed)).tolist() == pytest.approx(vector, abs=1e-7)


@pytest.mark.parametrize(
    "body", [{"messages": "no"}, {"messages": [{"role": 5}]}, {"input": "x", "dimensions": 10**9}]
)
def test_a_wrong_request_is_told_and_not_retried(tmp_path: Path, body: Any) -> None:
    endpoint = "/v1/embeddings" if "dimensions" in body else CHAT

    answer = ask(make_lane(tmp_path), body, endpoint=endpoint)

    assert answer.error_code == "invalid_input"
    assert not answer.is_retryable


def test_rates_are_kept_and_attempts_differ(tmp_path: Path) -> None:
    lane = make_lane(tmp_path, failure_rate=0.1, rate_limit_rate=0.2, error_rate=0.2)
    bodies = [json.dumps(chat(f"question {nth}")).encode() for nth in range(2000)]

    counts: list[dict[str | None, int]] = []
    for attempt in (1, 2):
        items = [LaneItem(nth, CHAT, body, 64, attempt) for nth, body in enumerate(bodies)]
        codes = [one.error_code for one in lane.collect(lane.submit(f"a{attempt}", items), items)]
        counts.append({code: codes.count(code) for code in set(codes)})

    for found in counts:
        assert found["content_policy"] == pytest.approx(200, rel=0.25)
        assert found["rate_limited"] == pytest.approx(360, rel=0.25)
        assert found["provider_error"] == pytest.approx(360, rel=0.25)
    # What is refused is refused again; what failed by chance mostly is not.
    assert counts[0]["content_policy"] == counts[1]["content_policy"]


def test_the_provider_remembers_what_it_has_accepted(tmp_path: Path) -> None:
    lane = make_lane(tmp_path)
    items = [LaneItem(nth, CHAT, json.dumps(chat(str(nth))).encode(), 64) for nth in range(5)]

    lane.submit("batch_1/0/0/1", items)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"key": "half a li')
    reborn = make_lane(tmp_path)

    assert reborn.find("batch_1/0/0/1") is not None
    assert reborn.find("batch_1/1/0/1") is None
    assert len(list(reborn.collect("batch_1/0/0/1", items))) == 5


def test_the_provider_forgets_what_is_long_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    old = time.time() - submissions.KEPT_S - 1
    lines = [{"key": f"old/{nth}", "accepted_at": old, "items": [[0, 0]]} for nth in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key": "torn')
    monkeypatch.setattr(submissions, "_FORGOTTEN_AT_ONCE", 5)

    log = submissions.SubmissionLog(path)
    log.add("new/0", [1])

    assert log.accepted_at("old/0") is None
    assert log.accepted_at("new/0") is not None
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["new/0"]


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    SubmissionLog(path).add("first", [0])
    path.write_bytes(path.read_bytes() + b'{"key":"cut o')

    SubmissionLog(path).add("second", [1])

    reopened = SubmissionLog(path)
    assert reopened.accepted_at("first") is not None
    assert reopened.accepted_at("second") is not None


def test_a_lane_that_is_down_accepts_nothing(tmp_path: Path) -> None:
    lane = make_lane(tmp_path, is_down=True)

    with pytest.raises(ConnectionError):
        lane.submit("k", [])
    assert lane.find("k") is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"latency": 1}, "options.latency: unknown"),
        ({"failure_rate": 2}, "out of range"),
        ({"latency_s": "1"}, "not a number"),
        ({"is_down": 1}, "neither true nor false"),
    ],
)
def test_wrong_options_are_named_with_their_lane(options: dict[str, Any], told: str) -> None:
    lane = {
        "provider": "simulated-x",
        "region": "eu",
        "capacity_items": 1,
        "models": [{"name": "m", "input_usd_per_mtok": "1"}],
        "options": options,
    }

    with pytest.raises(ValidationError, match=told):
        RouterConfig.model_validate({"lanes": [lane]})
