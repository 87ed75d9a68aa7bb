"""The way of regular lines says of every line what the general way says."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.job import Chat
from batchrouter.landing.envelope import UnreadableLineError, read_line
from batchrouter.landing.outcomes import outcome_of
from batchrouter.landing.outputs import open_reader
from batchrouter.landing.regular import RegularLine, read_regular

OUTPUT = {"label": {"type": "string"}, "score": {"type": "number"}}
READERS = [
    open_reader(Chat(user="{a}"), operation="responses", vector_size=None),  # type: ignore[arg-type]
    open_reader(Chat(user="{a}", output=OUTPUT), operation="responses", vector_size=None),  # type: ignore[arg-type]
]
GOOD = {
    "customer_item_id": "a",
    "status": "completed",
    "provider": "p",
    "provider_model": "m",
    "usage": {"input_tokens": 3, "output_tokens": 4},
    "cost": {"currency": "usd", "amount": "0.1"},
    "output": {
        "choices": [
            {
                "message": {"role": "assistant", "content": '{"label": "é\\n", "score": 1}'},
                "finish_reason": "stop",
            }
        ]
    },
    "error": None,
    "completed_at": "2026-01-01T00:00:00Z",
}
NASTY = [
    None, "", "x", "usd", "stop", "completed", "succeeded", "failed",
    "é\U0001f600\u2028", "\ud800", "\x00",
    0, 1, -1, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, 1e300, True, False, [], {}, [[]], ["x"],
    [{"type": "text", "text": "b"}], {"message": {"content": "c"}}, {"reason": "max_output_tokens"},
    {"code": "c", "message": "m"}, {"status_code": 500, "body": {}}, {"input_tokens": 5},
]  # fmt: skip
NAMES = [
    "customer_item_id", "custom_id", "status", "provider", "usage", "input_tokens", "output_tokens",
    "prompt_tokens", "completion_tokens", "cost", "currency", "amount", "output", "choices",
    "message", "content", "refusal", "tool_calls", "finish_reason", "text", "output_text",
    "stop_reason", "incomplete_details", "error", "response", "completed_at", "other",
]  # fmt: skip
OUTPUT_TEXTS = [
    '{"label": "x", "score": 1}',
    '{"label": "x"}',
    '{"label": 1, "score": 1}',
    "no",
    "",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the path of each dict and list."""
    found = [path] if isinstance(value, dict | list) else []
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return found + [
        each
        for name, item in entries
        if isinstance(item, dict | list)
        for each in places(item, (*path, name))
    ]


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Draw a good line with some fields put in, replaced or taken away, or cut short."""
    line = json.loads(json.dumps(GOOD))
    line["output"]["choices"][0]["message"]["content"] = draw(st.sampled_from(OUTPUT_TEXTS))
    for _ in range(draw(st.integers(0, 3))):
        holder = line
        for step in draw(st.sampled_from(places(line))):
            holder = holder[step]
        if isinstance(holder, list):
            holder.append(copy.deepcopy(draw(st.sampled_from(NASTY))))
        elif draw(st.booleans()):
            holder[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        elif holder:
            holder.pop(draw(st.sampled_from(sorted(holder))))
    raw = json.dumps(line, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = (
            raw[:at]
            + draw(st.sampled_from([b"", b"\xff", b'"', b"\\", b"\n", b"}"]))
            + raw[at + 1 :]
        )
    return raw


def judged(raw: bytes, read: Any, reader: Any) -> Any:
    """Say what one way makes of a line."""
    try:
        line = read(raw)
    except UnreadableLineError as error:
        return str(error)
    return line.customer_item_id, outcome_of(line, reader)


@pytest.mark.parametrize("reader", READERS, ids=["text", "object"])
@given(raw=lines())
def test_both_ways_say_the_same(reader: Any, raw: bytes) -> None:
    assert judged(raw, read_regular, reader) == judged(raw, read_line, reader)


def test_a_usual_line_is_regular() -> None:
    assert type(read_regular(json.dumps(GOOD).encode())) is RegularLine
