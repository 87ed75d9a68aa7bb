"""All three writers write what `json.dumps` writes, byte for byte, whatever the text holds."""

import json
import subprocess
import sys
from typing import Any

import batchrouter_kernel
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.job import Chat, Embedding, Job, Raw, Route, Workflow
from batchrouter.job.templates import Placeholder
from batchrouter.manifest.arrowwriter import ArrowWriter
from batchrouter.manifest.compiledwriter import COMPILED_VARIABLE, CompiledWriter
from batchrouter.manifest.lines import ItemId, JsonColumn, Slot, line_shape, pieces, slots
from batchrouter.manifest.rowwriter import BadBodyError, RowWriter, line_writer, parse_body
from batchrouter.manifest.slices import SLICE_BYTES

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


Writer = ArrowWriter | CompiledWriter | RowWriter
FAST = pytest.mark.parametrize("fast_writer", [ArrowWriter, CompiledWriter])


def _written(writer: Writer, columns: dict[Slot, pa.Array]) -> bytes:
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


def _by_each(texts: list[str]) -> list[bytes]:
    shape = line_shape(_job(CHAT))
    line = pieces(shape)
    writers = (ArrowWriter(line), CompiledWriter(line), RowWriter(shape))
    return [_written(writer, _columns(texts)) for writer in writers]


def test_nasty_texts_come_out_as_json_dumps_writes_them() -> None:
    by_arrow, compiled, by_row = _by_each(NASTY)

    assert by_arrow == _reference(NASTY)
    assert compiled == by_arrow
    assert by_row == by_arrow
    assert len(by_arrow.splitlines()) >= len(NASTY)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.text('"\\\n\r\t\x00\x1f{}é'),
        max_size=20,
    )
)
def test_any_text_comes_out_as_json_dumps_writes_it(texts: list[str]) -> None:
    by_arrow, compiled, by_row = _by_each(texts)

    assert by_arrow == compiled == by_row == _reference(texts)


def test_slices_are_cut_by_bytes_and_their_ends_are_exact() -> None:
    texts = ["x" * 2000, "\n" * 5000] * 500
    shape = line_shape(_job(CHAT))

    for writer in (ArrowWriter(pieces(shape)), CompiledWriter(pieces(shape)), RowWriter(shape)):
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


@FAST
def test_a_slice_of_a_larger_array_writes_its_own_rows_only(fast_writer: Any) -> None:
    shape = line_shape(_job(Embedding(input="{a}")))
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i"] * 9).slice(3, 4),
        Placeholder(("a",)): pa.array(list("abcdefghi")).slice(3, 4),
    }

    lines = _written(fast_writer(pieces(shape)), columns).splitlines()

    assert [json.loads(line)["input"]["input"] for line in lines] == ["d", "e", "f", "g"]


def test_no_rows_give_no_lines() -> None:
    assert _by_each([]) == [b"", b"", b""]


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


@FAST
def test_many_slots_side_by_side_come_out_as_json_dumps_writes_them(fast_writer: Any) -> None:
    names = [f"c{number}" for number in range(40)]
    apart = " ".join(f"{n}={{{name}}}" for n, name in enumerate(names))
    together = "".join(f"{{{name}}}" for name in reversed(names))
    shape = line_shape(_job(Embedding(input=f"{together}{apart}{together}")))
    texts = {name: NASTY[number % len(NASTY)] for number, name in enumerate(names)}
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i"]),
        **{Placeholder((name,)): pa.array([text]) for name, text in texts.items()},
    }

    lines = _written(fast_writer(pieces(shape)), columns)

    assert lines == _written(RowWriter(shape), columns)
    assert json.loads(lines)["input"]["input"].startswith("".join(reversed(texts.values())))


@FAST
def test_a_null_is_refused_and_drops_no_row(fast_writer: Any) -> None:
    shape = line_shape(_job(Embedding(input="{a}")))
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(["i", "j"]),
        Placeholder(("a",)): pa.array(["x", None]),
    }

    with pytest.raises(AssertionError, match="NULL"):
        _written(fast_writer(pieces(shape)), columns)


def test_a_row_larger_than_a_slice_gets_the_room_that_it_may_need() -> None:
    shape = line_shape(_job(Embedding(input="{a}")))
    texts = ["x", "\x01" * SLICE_BYTES, "y", '"' * (SLICE_BYTES - 1), "z"]
    columns: dict[Slot, pa.Array] = {
        ItemId(): pa.array(list("abcde")),
        Placeholder(("a",)): pa.array(texts),
    }

    found = list(CompiledWriter(pieces(shape)).write(columns))

    assert [(piece.start, len(piece.ends)) for piece in found] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert b"".join(piece.lines for piece in found) == _written(RowWriter(shape), columns)


def test_the_compiled_writer_is_taken_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = line_shape(_job(CHAT))

    assert isinstance(line_writer(shape), CompiledWriter)
    monkeypatch.setenv(COMPILED_VARIABLE, "0")
    assert isinstance(line_writer(shape), ArrowWriter)


def test_without_the_kernel_the_lines_are_those_of_arrow() -> None:
    program = (
        "import sys; sys.modules['batchrouter_kernel'] = None\n"
        "from batchrouter.manifest.rowwriter import line_writer\n"
        "print(type(line_writer({'customer_item_id': 'i'})).__name__)"
    )

    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert told.stdout.strip() == "ArrowWriter"


@pytest.mark.parametrize("room", [*range(30), 1 << 10])
def test_the_kernel_writes_whole_rows_and_not_one_byte_beyond_its_room(room: int) -> None:
    cells = ["a", "", '"\\', "\x01\x02", "plain text"]
    data = np.frombuffer("".join(cells).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(cell) for cell in cells)], dtype=np.int32)
    column = batchrouter_kernel.Column(offsets.ctypes.data, data.ctypes.data, 0)
    constants = (batchrouter_kernel.Constant * 2)(
        batchrouter_kernel.Constant(b"<", 1), batchrouter_kernel.Constant(b">\n", 2)
    )
    out, ends = np.full(2 << 10, 0xAA, np.uint8), np.full(len(cells) + 1, -1, np.int64)

    written = batchrouter_kernel.write_lines(
        (batchrouter_kernel.Column * 1)(column), constants, start=0, rows=len(cells),
        out_address=out.ctypes.data, out_bytes=room, ends_address=ends.ctypes.data,
    )  # fmt: skip

    lines = [f"<{json.dumps(cell)[1:-1]}>\n".encode() for cell in cells]
    whole = b"".join(lines[:written])
    assert out.tobytes() == whole + b"\xaa" * (len(out) - len(whole))
    assert ends.tolist() == [
        *np.cumsum([len(line) for line in lines[:written]]),
        *[-1] * (len(cells) + 1 - written),
    ]
    assert len(whole) <= room
    assert written == len(cells) or room < len(whole) + 3 + 6 * len(cells[written])


def test_a_constant_that_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="1 columns want one constant more, not 1"):
        batchrouter_kernel.write_lines(
            (batchrouter_kernel.Column * 1)(), (batchrouter_kernel.Constant * 1)(),
            start=0, rows=0, out_address=0, out_bytes=0, ends_address=0,
        )  # fmt: skip
