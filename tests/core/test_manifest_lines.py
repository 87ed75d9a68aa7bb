"""Both writers write what `json.dumps` writes, byte for byte, whatever the text holds."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.job import Chat, Embedding, Job, Raw, Route, Workflow
from batchrouter.job.templates import Placeholder
from batchrouter.manifest.kernel import SLICE_BYTES, FastWriter
from batchrouter.manifest.lines import ItemId, JsonColumn, Slot, line_shape, pieces, slots
from batchrouter.manifest.rowwriter import BadBodyError, RowWriter, line_writer, parse_body

NASTY = [
    "",
    " ",
    *(chr(code) for code in range(33)),
    "".join(map(chr, range(32))),
    '"',
    "\\",
    '\\"',
    '","',
    "\\n",
    "\x7f",
    "\x80\x9f\xa0",
    "\u2028\u2029",
    "\ufeff",
    "\ufffe\uffff",
    "\U0010ffff",
    "👩‍👩‍👧‍👦",
    "é è ü",
    "日本語",
    "жук\r\nлю",
    "{x} {} ${params.x} %s",
    "\u00c0\u00c1\u00f5\u00ff",
    "\n" * 1000,
    "x" * 100_000,
    'é"' * 30_000,
    "</script><!--",
    "\\u0041",
    "null",
]

CHAT = Chat(
    system='Answer {"ok": [1, {}]} "now"\n\\',
    user="A {a}{b}\n{a} \\{a} é",
    output={"x": {"type": "string", "enum": ['"', "é"]}},
    parameters={"temperature": 0.1, "top_p": 1e16, "stop": ["\n"]},
)


def _job(request: Any, route: Route | None = None) -> Job:
    route = route or Route(models=["m"])
    return Job(name="j", source="t", key="id", request=request, route=route, budget=1, sink="s")


def _columns(texts: list[str]) -> dict[Slot, pa.Array]:
    ids = [f"{row:026d}" for row in range(len(texts))]
    return {
        ItemId(): pa.array(ids, pa.string()),
        Placeholder(("a",)): pa.array(texts, pa.string()),
        Placeholder(("b",)): pa.array(texts[::-1], pa.large_string()),
    }


def _written(writer: FastWriter | RowWriter, columns: dict[Slot, pa.Array]) -> bytes:
    return b"".join(piece.lines for piece in writer.write(columns))


def _reference(texts: list[str]) -> bytes:
    lines: list[str] = []
    for row, (a, b) in enumerate(zip(texts, texts[::-1], strict=True)):
        line = {
            "customer_item_id": f"{row:026d}",
            "operation": "responses",
            "input": {
                "messages": [
                    {"role": "system", "content": 'Answer {"ok": [1, {}]} "now"\n\\'},
                    {"role": "user", "content": f"A {a}{b}\n{a} {{a}} é"},
                ],
                "stop": ["\n"],
                "temperature": 0.1,
                "top_p": 1e16,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "output",
                        "strict": True,
                        "schema": {
                            "type": "object",
                            "properties": {"x": {"type": "string", "enum": ['"', "é"]}},
                            "required": ["x"],
                            "additionalProperties": False,
                        },
                    },
                },
            },
        }
        lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines).encode()


def _both(texts: list[str]) -> tuple[bytes, bytes]:
    shape = line_shape(_job(CHAT))
    fast, plain = FastWriter(pieces(shape)), RowWriter(shape)
    return _written(fast, _columns(texts)), _written(plain, _columns(texts))


def test_nasty_texts_come_out_as_json_dumps_writes_them() -> None:
    fast, plain = _both(NASTY)

    assert fast == _reference(NASTY)
    assert plain == fast
    assert len(fast.splitlines()) >= len(NASTY)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.text('"\\\n\r\t\x00\x1f{}é'),
        max_size=20,
    )
)
def test_any_text_comes_out_as_json_dumps_writes_it(texts: list[str]) -> None:
    fast, plain = _both(texts)

    assert fast == plain == _reference(texts)


def test_slices_are_cut_by_bytes_and_their_ends_are_exact() -> None:
    texts = ["x" * 2000, "\n" * 5000] * 500
    shape = line_shape(_job(CHAT))

    for writer in (FastWriter(pieces(shape)), RowWriter(shape)):
        found = list(writer.write(_columns(texts)))

        assert [piece.start for piece in found] == list(
            np.cumsum([0, *(len(piece.ends) for piece in found[:-1])])
        )
        assert len(found) > 3
        assert max(len(piece.lines) for piece in found) < 4 * SLICE_BYTES
        for piece in found:
            assert piece.ends[-1] == len(piece.lines)
            assert all(piece.lines[end - 1] == ord("\n") for end in piece.ends)
        assert sum(len(piece.ends) for piece in found) == len(texts)


def test_a_slice_of_a_larger_array_writes_its_own_rows_only() -> None:
    shape = line_shape(_job(Embedding(input="{a}")))
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i"] * 9).slice(3, 4),
        Placeholder(("a",)): pa.array(list("abcdefghi")).slice(3, 4),
    }

    lines = _written(FastWriter(pieces(shape)), columns).splitlines()

    assert [json.loads(line)["input"]["input"] for line in lines] == ["d", "e", "f", "g"]


def test_no_rows_give_no_lines() -> None:
    assert _both([]) == (b"", b"")


def test_embeddings_and_workflows_have_their_own_shapes() -> None:
    embedding = line_shape(_job(Embedding(input="{a}", parameters={"dimensions": 8})))
    workflow = line_shape(_job(Workflow(input={"text": "{a}"}), Route(workflow="w@v1")))

    assert "".join(str(piece) for piece in pieces(embedding) if isinstance(piece, str)) == (
        '{"customer_item_id":"","operation":"embeddings","input":{"input":"","dimensions":8}}'
    )
    assert "".join(str(piece) for piece in pieces(workflow) if isinstance(piece, str)) == (
        '{"customer_item_id":"","input":{"text":""}}'
    )


def test_raw_mappings_keep_values_that_are_no_text() -> None:
    body = {"messages": [{"role": "user", "content": "{a}"}], "n_best": [1, None, True, {}, []]}

    shape = line_shape(_job(Raw(body=body)))

    assert slots(shape) == [ItemId(), Placeholder(("a",))]
    assert ',"n_best":[1,null,true,{},[]]}}' in pieces(shape)[-1]  # pyright: ignore[reportOperatorIssue] - a constant is last


def test_raw_columns_go_row_by_row_and_note_the_largest_cap() -> None:
    writer = line_writer(line_shape(_job(Raw(body="payload"))))
    assert isinstance(writer, RowWriter)
    texts = ['{"input": "é", "max_output_tokens": 5}', ' {"max_output_tokens":9,"b":1e3}', "{}"]

    lines = _written(
        writer, {ItemId(): pa.array(list("abc")), JsonColumn("payload"): pa.array(texts)}
    )

    assert lines.decode().splitlines() == [
        '{"customer_item_id":"a","operation":"responses","input":{"input":"é","max_output_tokens":5}}',
        '{"customer_item_id":"b","operation":"responses","input":{"max_output_tokens":9,"b":1000.0}}',
        '{"customer_item_id":"c","operation":"responses","input":{}}',
    ]
    assert writer.max_output_tokens == 9


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": 1e999}', "Out of range"),
        ('{"a": 1, "a": 2}', "repeats a key"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"model": "x"}', "names a model"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "deeper than 64"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "deeper than 64"),
    ],
)
def test_a_body_that_cannot_be_sent_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_body(text)


def test_a_bad_body_names_its_row() -> None:
    writer = line_writer(line_shape(_job(Raw(body="payload"))))

    with pytest.raises(BadBodyError) as caught:
        _written(
            writer, {ItemId(): pa.array(["a", "b"]), JsonColumn("payload"): pa.array(["{}", "x"])}
        )

    assert (caught.value.row, caught.value.column) == (1, "payload")


def test_many_slots_side_by_side_come_out_as_json_dumps_writes_them() -> None:
    names = [f"c{number}" for number in range(40)]
    apart = " ".join(f"{n}={{{name}}}" for n, name in enumerate(names))
    together = "".join(f"{{{name}}}" for name in reversed(names))
    shape = line_shape(_job(Embedding(input=f"{together}{apart}{together}")))
    texts = {name: NASTY[number % len(NASTY)] for number, name in enumerate(names)}
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i"]),
        **{Placeholder((name,)): pa.array([text]) for name, text in texts.items()},
    }

    lines = _written(FastWriter(pieces(shape)), columns)

    assert lines == _written(RowWriter(shape), columns)
    assert json.loads(lines)["input"]["input"].startswith("".join(reversed(texts.values())))


def test_a_null_is_refused_and_drops_no_row() -> None:
    shape = line_shape(_job(Embedding(input="{a}")))
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i", "j"]),
        Placeholder(("a",)): pa.array(["x", None]),
    }

    with pytest.raises(AssertionError, match="NULL"):
        _written(FastWriter(pieces(shape)), columns)
