"""Bodies of every provider: the answer, or the reason why it is none."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

CHAT = {"object": "chat.completion"}


def responses(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": list(content)}
    return {"object": "response", "status": "completed", "output": [message], **fields}


def choice(content: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


ANSWERS = {
    "chat": (choice("yes"), "yes"),
    "chat without finish reason": (choice("yes", None), "yes"),
    "empty text": (choice(""), ""),
    "chat parts": (choice([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
    "legacy completion": ({"choices": [{"text": "yes"}]}, "yes"),
    "responses": (responses({"type": "output_text", "text": "yes"}), "yes"),
    "responses with reasoning": (
        {
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
            ]
        },
        "yes",
    ),
    "responses of two messages": (
        {
            "output": [
                {"type": "message", "content": [{"type": "output_text", "text": "a"}]},
                {"type": "message", "content": "b"},
            ]
        },
        "ab",
    ),
    "output_text alone": ({"output_text": "yes"}, "yes"),
    "anthropic": (
        {
            "type": "message",
            "role": "assistant",
            "stop_reason": "end_turn",
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}],
        },
        "yes",
    ),
    "bare string": ("yes", "yes"),
    "odd side fields": (
        choice("yes") | {"status": 200, "stop_reason": ["x"], "usage": "many", "id": 5},
        "yes",
    ),
    "several choices": (
        {"choices": [*choice("first")["choices"], *choice("second")["choices"]]},
        "first",
    ),
    "nul and controls": (choice("a\x00\x1f\u2028z"), "a\x00\x1f\u2028z"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_text_is_found(kit: Any, run_folder: Any, name: str) -> None:
    body, text = ANSWERS[name]
    run_folder.add_part(1, [kit.native(0, body)])

    run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["output"], row["_raw_output"]) == ("succeeded", text, None)


NO_ANSWERS = {
    "refusal": (choice(None, refusal="I cannot"), "refusal", "I cannot", "I cannot"),
    "refusal part": (
        responses({"type": "refusal", "refusal": "I cannot"}),
        "refusal",
        "I cannot",
        "I cannot",
    ),
    "anthropic refusal": (
        {"content": [], "stop_reason": "refusal"},
        "refusal",
        "the answer was withheld (refusal)",
        None,
    ),
    "content filter": (
        choice("half", "content_filter"),
        "content_filter",
        "the answer was withheld (content_filter)",
        "half",
    ),
    "responses content filter": (
        responses(
            {"type": "output_text", "text": "half"}, incomplete_details={"reason": "content_filter"}
        ),
        "content_filter",
        "the answer was withheld (content_filter)",
        "half",
    ),
    "tool calls": (
        choice(None, "tool_calls", tool_calls=[{"id": "c"}]),
        "tool_calls",
        "the model called a tool instead",
        '[{"id": "c"}]',
    ),
    "output null": (None, "no_output", "the line has no output", None),
    "empty body": ({}, "no_output", "the body holds no text", "{}"),
    "no choices": ({"choices": []}, "no_output", "the body holds no text", '{"choices": []}'),
    "content null": (choice(None), "no_output", "the body holds no text", None),
    "only reasoning": (
        {"output": [{"type": "reasoning"}]},
        "no_output",
        "the body holds no text",
        None,
    ),
    "body is a list": ([1], "unknown_body", None, "[1]"),
    "choices is text": ({"choices": "x"}, "unknown_body", None, '{"choices": "x"}'),
    "cut before any text": (
        choice(None, "length"),
        "output_truncated",
        "the output cap was reached before any text",
        None,
    ),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_invalid_output_with_a_reason(
    kit: Any, run_folder: Any, name: str
) -> None:
    body, code, message, raw = NO_ANSWERS[name]
    run_folder.add_part(1, [kit.native(0, body)])

    report = run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["_error_code"], row["output"]) == ("invalid_output", code, None)
    assert message is None or row["_error_message"] == message
    assert raw is None or row["_raw_output"] == raw
    assert row["_input_tokens"] == 10
    assert report.error_codes == {code: 1}


@pytest.mark.parametrize(
    "body",
    [
        choice("half a sent", "length"),
        responses(
            {"type": "output_text", "text": "half a sent"},
            status="incomplete",
            incomplete_details={"reason": "max_output_tokens"},
        ),
        {"content": [{"type": "text", "text": "half a sent"}], "stop_reason": "max_tokens"},
    ],
)
def test_a_text_that_the_cap_cut_lands_with_a_warning(
    kit: Any, run_folder: Any, body: dict[str, Any]
) -> None:
    run_folder.add_part(1, [kit.native(0, body)])

    report = run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["output"]) == ("succeeded", "half a sent")
    assert row["_error_code"] == "output_truncated"
    assert report.error_codes == {}


def test_a_lone_surrogate_is_replaced_and_never_passed_off_as_the_answer(
    kit: Any, run_folder: Any
) -> None:
    line = kit.encoded([kit.native(0, choice("cut here: HOLE and \U0001f600"))])
    run_folder.add_part(1, [line.replace(b"HOLE", b"\\ud83d")])

    report = run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["_error_code"]) == ("invalid_output", "invalid_unicode")
    assert "cut here: \ufffd and \U0001f600" in row["_raw_output"]
    assert row["_request_hash"] == "hash0"
    assert report.quarantined == 0


def test_invalid_utf8_inside_the_output_is_invalid_output(kit: Any, run_folder: Any) -> None:
    line = kit.encoded([kit.native(0, choice("HOLE"))])
    run_folder.add_part(1, [line.replace(b"HOLE", b"\xff\xfe")])

    run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["_error_code"]) == ("invalid_output", "unknown_body")
    assert "\ufffd\ufffd" in row["_raw_output"]


def test_an_error_that_cannot_be_read_still_says_what_came(kit: Any, run_folder: Any) -> None:
    line = kit.encoded([kit.native(0, status="failed", error="HOLE")])
    run_folder.add_part(1, [line.replace(b"HOLE", b"co\xff\xff")])

    run_folder.land(kit.text_job)

    row = run_folder.landed()[0]
    assert (row["_status"], row["_error_code"]) == ("failed", "unknown_error")
    assert "co\ufffd\ufffd" in row["_error_message"]


# --- embeddings ---------------------------------------------------------------------------------


def embedding_job(kit: Any) -> Any:
    return kit.job({"kind": "embedding", "input": "{subject}"}, route={"models": ["embed"]})


def vector(*numbers: float | str) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": numbers}]}


def test_vectors_land_with_a_fixed_size(kit: Any, run_folder: Any) -> None:
    packed = "AAAAPwAAgD8AAAAA"
    run_folder.add_part(
        7,
        [
            kit.native(0, None, error={"code": "provider_error", "message": "no"}),
            kit.native(1, vector(0.5, 1, -2e-3)),
            kit.native(2, {"embedding": [1, 2, 3]}),
            kit.native(3, vector(1, 2)),
            kit.native(4, vector(1, 2, 1e300)),
            kit.native(5, {"data": [{"embedding": packed}]}),
            kit.native(6, vector(1, "x", 3)),
        ],
    )

    report = run_folder.land(embedding_job(kit))

    file = pq.ParquetFile(next(run_folder.table_path.rglob("*.parquet")))
    assert str(file.schema_arrow.field("output").type) == "fixed_size_list<element: float>[3]"
    rows = run_folder.landed()
    np.testing.assert_allclose(rows[1]["output"], [0.5, 1, -2e-3], rtol=1e-6)
    assert rows[2]["output"] == [1, 2, 3]
    assert rows[5]["output"] == [0.5, 1, 0]
    told = [(row["_status"], row["_error_code"]) for row in rows if row["output"] is None]
    assert told == [
        ("failed", "provider_error"),
        ("invalid_output", "embedding_size"),
        ("invalid_output", "embedding_invalid"),
        ("invalid_output", "unknown_body"),
    ]
    assert report.rows == 7


def test_a_run_without_any_vector_takes_the_size_of_the_table(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(1, [kit.native(0, vector(1, 2, 3))])
    run_folder.land(embedding_job(kit))
    run_folder.parts.clear()
    run_folder.add_part(1, None, batch_state="expired")
    other = type(run_folder.identity)("label", "next", "next-ffff")

    report = run_folder.land(embedding_job(kit), identity=other)

    assert report.missing == 1
    assert len(pq.read_table(run_folder.table_path)) == 2


# --- workflows ----------------------------------------------------------------------------------


def workflow_job(kit: Any, **fields: Any) -> Any:
    request = {"kind": "workflow", "input": {"text": "{subject}"}, **fields}
    return kit.job(request, route={"workflow": "classify@v3"})


def test_a_workflow_answers_with_the_object_itself_or_a_providers_body(
    kit: Any, run_folder: Any
) -> None:
    output = {"intent": {"type": "string"}}
    run_folder.add_part(
        4,
        [
            kit.native(0, {"intent": "billing"}),
            kit.native(1, CHAT | choice('{"intent": "bug"}')),
            kit.native(2, responses({"type": "output_text", "text": '{"intent": "how"}'})),
            kit.native(3, {"intent": 5}),
        ],
    )

    run_folder.land(workflow_job(kit, output=output))

    rows = run_folder.landed()
    assert [row["intent"] for row in rows] == ["billing", "bug", "how", None]
    assert rows[3]["_error_message"] == "Expected `str`, got `int` - at `$.intent`"
    assert rows[3]["_raw_output"] == '{"intent": 5}'


def test_a_workflow_without_a_schema_lands_its_object_as_text(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(2, [kit.native(0, {"content": "x", "n": 1}), kit.native(1, None)])

    run_folder.land(workflow_job(kit))

    rows = run_folder.landed()
    assert rows[0]["output"] == '{"content": "x", "n": 1}'
    assert rows[1]["_error_code"] == "no_output"
