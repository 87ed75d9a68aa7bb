"""What a manifest line may be, and what is counted while a manifest comes in."""

import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.errors import APIError
from batchrouter.server import strict_json
from batchrouter.server.batches.intake import Intake
from batchrouter.server.batches.lines import LineError, read_line
from batchrouter.server.batches.seen_ids import SeenIds
from batchrouter.server.config import Limits
from batchrouter.server.storage.objects import Objects
from batchrouter.server.strict_json import StrictJsonError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def native(**changes):
    return {"customer_item_id": "a", "operation": "responses", "input": CHAT, **changes}


def openai(**changes):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    return {**line, **changes}


def without(line, *names):
    return {name: value for name, value in line.items() if name not in names}


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def take(tmp_path, content, *, block_bytes=None, **limits):
    objects = Objects.local(tmp_path / "objects")
    with Intake(objects, "manifests/f.jsonl", tmp_path / "scratch", Limits(**limits)) as intake:
        step = block_bytes or max(1, len(content))
        for start in range(0, len(content), step):
            intake.feed(content[start : start + step])
        return intake.finish()


def issues(tmp_path, content, **more):
    with pytest.raises(APIError) as caught:
        take(tmp_path, content, **more)
    assert caught.value.code == "invalid_manifest"
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []
    return caught.value.details


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", "invalid_json"),
        (b'{"customer_item_id":"a"', "invalid_json"),
        (b"[]", "not_an_object"),
        (b"{}", "unknown_dialect"),
        (json.dumps({**native(), "custom_id": "a"}), "unknown_dialect"),
        (json.dumps(native()).replace('"hi"', "NaN"), "invalid_number"),
        (json.dumps(native()).replace('"hi"', "-Infinity"), "invalid_number"),
        (json.dumps(native()).replace('"hi"', "1e999"), "invalid_number"),
        (json.dumps(native()).replace('"hi"', r'"\ud800"'), "lone_surrogate"),
        (json.dumps(native()).replace('"hi"', r'"\udc00x"'), "lone_surrogate"),
        (json.dumps(native()).encode().replace(b"hi", b"\xff"), "invalid_utf8"),
        (json.dumps(native()).encode().replace(b"hi", b"\xed\xa0\x80"), "invalid_utf8"),
        (json.dumps(native()).replace('"hi"', '"a\tb"'), "invalid_json"),
        (json.dumps(native(metadata=nested(64))), "too_deep"),
        (json.dumps(native(metadata={"x": 0})).replace("0", "[" * 2000 + "]" * 2000), "too_deep"),
        ('{"customer_item_id":"b",' + json.dumps(native())[1:], "repeated_key"),
        ('{"customer_item_id" :"b",' + json.dumps(native())[1:], "repeated_key"),
        (json.dumps(native()).replace('"role"', r'"r\u006fle": "x", "role"'), "repeated_key"),
        (json.dumps(native()).replace('"role"', '"a": {"b": 1, "b": 2}, "role"'), "repeated_key"),
        (json.dumps(native(customer_item_id="")), "invalid_item_id"),
        (json.dumps(native(customer_item_id=7)), "invalid_item_id"),
        (json.dumps(native(customer_item_id="x" * 129)), "invalid_item_id"),
        (json.dumps(native(customer_item_id="a\nb")), "invalid_item_id"),
        (json.dumps(native(customer_item_id="a\x85b")), "invalid_item_id"),
        (json.dumps(native(operation="guess")), "invalid_field"),
        (json.dumps(native(operation=None)), "invalid_field"),
        (json.dumps(native(operation=[])), "invalid_field"),
        (json.dumps(native(input="hi")), "invalid_field"),
        (json.dumps(native(input={})), "missing_field"),
        (json.dumps(native(input={"messages": []})), "invalid_field"),
        (json.dumps(native(input={"messages": [{"role": "user"}]})), "invalid_field"),
        (json.dumps(native(input={**CHAT, "input": "hi"})), "invalid_field"),
        (json.dumps(native(input={**CHAT, "max_output_tokens": 0})), "invalid_field"),
        (json.dumps(native(input={**CHAT, "max_output_tokens": True})), "invalid_field"),
        (json.dumps(native(operation="embeddings")), "missing_field"),
        (json.dumps(native(operation="embeddings", input={"input": ""})), "missing_field"),
        (json.dumps(native(model="")), "invalid_field"),
        (json.dumps(native(metadata=[])), "invalid_field"),
        (json.dumps(native(models="m")), "unknown_field"),
        (json.dumps(without(native(model="m"), "operation")), "missing_field"),
        (json.dumps(openai(method="GET")), "invalid_field"),
        (json.dumps(openai(url="/v1/files")), "invalid_field"),
        (json.dumps(openai(url=["/v1/responses"])), "invalid_field"),
        (json.dumps(openai(body=None)), "invalid_field"),
        (json.dumps(openai(body={"model": 3, **CHAT})), "invalid_field"),
    ],
)
def test_a_bad_line_is_refused_with_its_reason(line, code):
    raw = line if isinstance(line, bytes) else line.encode()

    with pytest.raises(LineError) as caught:
        read_line(raw)

    assert caught.value.code == code


@pytest.mark.parametrize(
    "line",
    [
        native(),
        native(model="gpt-4o-mini", metadata={"row": 1}),
        native(customer_item_id="naïve ﬂag 🏁 \u2028"),
        native(input={"input": "just text", "temperature": 0.5}),
        native(input={**CHAT, "seed": 2**70}),
        native(metadata={"quoted": 'a ": b \\": c "\t: d'}),
        native(metadata={"escaped": "\u0000 \u0022 : \u003a"}),
        native(metadata={"deep": nested(62)}),
        native(operation="vision"),
        native(operation="embeddings", input={"input": "hi"}),
        without(native(input={"subject": "s", "body": "b", "labels": ["x"]}), "operation"),
        openai(),
        openai(url="/v1/responses", body={"model": "m", "input": [{"role": "user"}]}),
        openai(url="/v1/embeddings", body={"model": "m", "input": ["a", "b"]}),
        openai(body={"messages": [{"role": "assistant", "content": None}]}),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,", " :")])
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_a_good_line_is_taken_however_it_is_written(line, separators, ensure_ascii):
    raw = json.dumps(line, separators=separators, ensure_ascii=ensure_ascii).encode()

    taken = read_line(raw)

    assert taken.input == (line.get("input") or line["body"])
    assert taken.item_id == (line.get("customer_item_id") or line["custom_id"])


# Anything that two keys, colons, quotes and escapes can be arranged to.
json_texts = st.recursive(
    st.sampled_from(["1", '"x"', r'"a\": b"', r'"\u0022:"', r'"\u003a"', '" :"', "null", '"\\\\"']),
    lambda inner: st.lists(
        st.tuples(
            st.sampled_from(['"k"', '"l"', r'"\u006b"', r'"k\":"']),
            st.sampled_from([":", " :", ": ", "\t:"]),
            inner,
        ),
        max_size=3,
    ).map(lambda pairs: "{" + ",".join("".join(pair) for pair in pairs) + "}"),
    max_leaves=8,
)


@given(json_texts)
def test_the_fast_parser_never_hides_a_repeated_key(text):
    raw = (
        b'{"customer_item_id":"a","operation":"embeddings","input":{"input":"x","y":%b}}'
        % text.encode()
    )

    def told(read):
        try:
            return read()
        except (StrictJsonError, LineError) as error:
            return error.code

    exact = told(lambda: strict_json.loads(raw)["input"])

    assert told(lambda: read_line(raw).input) == exact


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 + 1, 10**19 + 1, -(10**400) - 7])
@pytest.mark.parametrize("pad", range(10))
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_whole_numbers_beyond_64_bits_are_counted_as_they_are_written(number, pad, separators):
    body = {"input": "x" * pad or "y", "seeds": [1, number], "seed": number}
    raw = json.dumps(native(input=body), separators=separators).encode()

    taken = read_line(raw)

    assert taken.input == body
    assert taken.input_bytes == len(json.dumps(body, separators=(",", ":")))


# Controls, U+2028, NUL, half a surrogate pair, an astral character: as they are and as escapes.
ODD = ["\x00", "\u2028", "\ud800", "\udc00", "\U0001f600", "\x7f", '"']
any_text = st.text() | st.sampled_from(ODD)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


def read_or_code(read):
    try:
        return read()
    except (StrictJsonError, LineError) as refused:
        return refused.code


def utf8(text):
    return text.encode("utf-8", "surrogatepass")


@given(
    any_json,
    any_text,
    st.integers(0, 70),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", "\t:")]),
)
def test_any_json_is_read_exactly_or_refused_by_name(value, item_id, depth, is_ascii, separators):
    for _ in range(depth):
        value = [value]
    body = {"input": "x", "y": value}
    line = native(customer_item_id=item_id, operation="embeddings", input=body)
    raw = utf8(json.dumps(line, ensure_ascii=is_ascii, separators=separators))

    exact = read_or_code(lambda: strict_json.loads(raw))
    taken = read_or_code(lambda: read_line(raw))

    if isinstance(exact, str):
        assert taken in {exact, "invalid_item_id"}
    elif isinstance(taken, str):
        assert taken == "invalid_item_id"
    else:
        assert taken.item_id == exact["customer_item_id"]
        # Not only equal: 1 is not 1.0, and -0.0 is not 0.
        assert repr(taken.input) == repr(exact["input"])


@given(st.binary(max_size=200) | st.text(max_size=200).map(utf8))
def test_any_bytes_are_a_line_or_are_refused(raw):
    assert read_or_code(lambda: read_line(raw).item_id)


@given(st.data())
def test_where_the_bytes_are_cut_changes_nothing(tmp_path_factory, data):
    ids = data.draw(st.lists(st.text() | st.sampled_from(["\u2028", "\x7f", '"']), max_size=6))
    lines_ = [utf8(json.dumps(native(customer_item_id=one), ensure_ascii=False)) for one in ids]
    ends = st.sampled_from([b"", b"\n", b"{", b"\r\n", b"\xff"])
    content = b"\n".join(lines_) + data.draw(ends)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=5))
    edges = [0, *sorted(cuts), len(content)]
    blocks = [content[start:end] for start, end in pairwise(edges)]

    whole = told_of(tmp_path_factory.mktemp("whole"), [content])

    assert told_of(tmp_path_factory.mktemp("cut"), blocks) == whole


def told_of(folder, blocks):
    objects = Objects.local(folder / "objects")
    try:
        with Intake(objects, "manifests/f.jsonl", folder / "scratch", Limits()) as intake:
            for block in blocks:
                intake.feed(block)
            return intake.finish()
    except APIError as refused:
        return refused.details


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 64, None])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_facts_do_not_depend_on_how_the_bytes_arrive(tmp_path, block_bytes, line_end):
    content = line_end.join(
        json.dumps(native(customer_item_id=f"é{number}", model="m"), ensure_ascii=False).encode()
        for number in range(5)
    )

    facts = take(tmp_path, content, block_bytes=block_bytes)

    assert (facts.item_count, facts.bytes, facts.models) == (5, len(content), ["m"])
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "objects/manifests/f.jsonl").read_bytes() == content


def test_tokens_are_estimated_from_the_inputs_alone_at_four_bytes_each(tmp_path):
    facts = take(tmp_path, lines(native(), native(customer_item_id="x" * 100)))

    assert facts.input_tokens_estimate == -(-2 * len(json.dumps(CHAT, separators=(",", ":"))) // 4)


def test_the_largest_own_cap_is_known_whatever_it_is_called(tmp_path):
    facts = take(
        tmp_path,
        lines(
            native(customer_item_id="a", input={**CHAT, "max_output_tokens": 5}),
            native(customer_item_id="b", input={**CHAT, "max_tokens": 9}),
            native(customer_item_id="c"),
        ),
    )

    assert facts.max_output_tokens == 9


def test_a_workflows_fields_are_counted_with_their_types(tmp_path):
    facts = take(
        tmp_path,
        lines(
            {"customer_item_id": "a", "input": {"body": "x", "labels": ["l"]}},
            {"customer_item_id": "b", "input": {"body": 7}},
        ),
    )

    assert facts.operation is None
    assert facts.fields == {
        "body": {"count": 2, "types": ["other", "string"]},
        "labels": {"count": 1, "types": ["string[]"]},
    }


def test_issues_name_the_line_and_come_with_their_total(tmp_path):
    bad = [native(customer_item_id=str(number), operation="?") for number in range(30)]

    details = issues(tmp_path, lines(native(customer_item_id="ok"), *bad))

    assert details["issue_count"] == 30
    assert [issue["line"] for issue in details["issues"]] == list(range(2, 22))
    assert details["issues"][0]["code"] == "invalid_field"
    assert details["issues"][0]["message"].startswith("operation: ")


def test_a_repeated_id_names_both_lines(tmp_path):
    details = issues(tmp_path, lines(native(), native(customer_item_id="b"), native()))

    (issue,) = details["issues"]
    assert (issue["line"], issue["first_line"], issue["code"]) == (3, 1, "duplicate_item_id")
    assert "line 1" in issue["message"]
    assert "line 3" in issue["message"]


def test_ids_are_compared_code_point_by_code_point(tmp_path):
    composed, decomposed = "é", "e\u0301"

    facts = take(
        tmp_path,
        lines(native(customer_item_id=composed), native(customer_item_id=decomposed)),
    )

    assert facts.item_count == 2


@pytest.mark.parametrize(
    ("content", "line", "code"),
    [
        (b"", 1, "empty_manifest"),
        (b"\n", 1, "blank_line"),
        (lines(native()) + b"\n", 2, "blank_line"),
        (lines(native()) + b" \t\r\n" + lines(native(customer_item_id="b")), 2, "blank_line"),
        (b"\xef\xbb\xbf" + lines(native()), 1, "byte_order_mark"),
        (lines(native(), openai(custom_id="b")), 2, "mixed_dialects"),
        (
            lines(
                native(),
                native(customer_item_id="b", operation="embeddings", input={"input": "x"}),
            ),
            2,
            "mixed_operations",
        ),
        (lines(openai(), openai(custom_id="b", url="/v1/responses")), 2, "mixed_operations"),
        (
            lines(native(), {"customer_item_id": "b", "input": {"body": "x"}}),
            2,
            "mixed_operations",
        ),
    ],
)
def test_a_file_must_be_of_one_kind_and_without_blanks(tmp_path, content, line, code):
    details = issues(tmp_path, content)

    assert [(issue["line"], issue["code"]) for issue in details["issues"]] == [(line, code)]


@pytest.mark.parametrize("block_bytes", [10, None])
def test_a_line_over_the_limit_is_named_and_those_behind_it_still_count(tmp_path, block_bytes):
    long = native(customer_item_id="long", metadata={"x": "y" * 500})

    details = issues(
        tmp_path,
        lines(native(), long, native()),
        block_bytes=block_bytes,
        manifest_line_bytes=300,
    )

    assert [(issue["line"], issue["code"]) for issue in details["issues"]] == [
        (2, "line_too_long"),
        (3, "duplicate_item_id"),
    ]


def test_no_more_of_a_line_is_held_than_it_may_have(tmp_path):
    objects = Objects.local(tmp_path / "objects")
    limits = Limits(manifest_line_bytes=300)
    with Intake(objects, "manifests/f.jsonl", tmp_path / "scratch", limits) as intake:
        for _ in range(20):
            intake.feed(b"x" * 250)
            assert len(intake._rest) <= 301
        with pytest.raises(APIError, match="line 1: is over 300 bytes"):
            intake.finish()


@pytest.mark.parametrize("extra", [0, 1])
def test_a_line_of_exactly_the_limit_is_taken(tmp_path, extra):
    line = json.dumps(native()).encode()
    line = line.replace(b"hi", b"h" * (302 - len(line) + extra))
    limits = {"manifest_line_bytes": 300, "block_bytes": 50}

    if extra:
        assert issues(tmp_path, line, **limits)["issues"][0]["code"] == "line_too_long"
    else:
        assert take(tmp_path, line + b"\r\n", **limits).item_count == 1


def test_more_lines_than_allowed_are_one_issue(tmp_path):
    many = [native(customer_item_id=str(number)) for number in range(9)]

    details = issues(tmp_path, lines(*many), manifest_lines=5)

    assert [(issue["line"], issue["code"]) for issue in details["issues"]] == [
        (6, "too_many_lines")
    ]


def test_a_file_over_the_limit_is_refused_while_it_streams(tmp_path):
    with pytest.raises(APIError) as caught:
        take(tmp_path, b"x" * 1000, block_bytes=10, manifest_bytes=500)

    assert (caught.value.code, caught.value.details) == ("request_too_large", {"max_bytes": 500})


def test_duplicates_are_found_beyond_the_window_exactly(tmp_path):
    with SeenIds(tmp_path, window_ids=10) as seen:
        for line in range(1, 1001):
            assert seen.add(f"id {line % 997}", line) is None

        late = seen.late_duplicates(2)

        assert late == [(998, 1, "id 1"), (999, 2, "id 2")]
        assert seen.late_count == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [-1_000_000, 0, "64", 6.5, True])
def test_every_output_cap_of_a_line_is_checked_not_only_the_first(other):
    line = {
        "customer_item_id": "a",
        "operation": "responses",
        "input": {"input": "hi", "max_output_tokens": 5, "max_completion_tokens": other},
    }

    with pytest.raises(LineError, match=r"input\.max_completion_tokens: must be"):
        read_line(json.dumps(line).encode())
