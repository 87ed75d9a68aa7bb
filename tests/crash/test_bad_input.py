"""A table that does not fit its job: told by its column and row, nothing bought, mended, landed."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.testing import RunningRouter, running_router
from crash.mistake import NO_TABLE, ROWS, WRONG_COMMAND, WRONG_SOURCE, Mistake, mistake
from crash.scenario import queries


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def bad(router: RunningRouter, tmp_path: Path) -> Mistake:
    return mistake(tmp_path, router)


def with_column(name: str, values: pa.Array) -> pa.Table:
    table = queries(ROWS)
    return table.set_column(table.schema.get_field_index(name), name, values)


def not_utf8() -> pa.Array:
    """Row 3 holds a Latin-1 é, as a Parquet writer that does not look lets through."""
    texts = [f"query {row}".encode() for row in range(ROWS)]
    texts[3] = b"caf\xe9"
    ends = [sum(len(text) for text in texts[:row]) for row in range(ROWS + 1)]
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), ROWS, [None, offsets, pa.py_buffer(b"".join(texts))])


def test_a_source_that_is_not_there(bad: Mistake) -> None:
    bad.source.unlink()

    bad.fails(WRONG_SOURCE, "source:", "queries.parquet", "does not exist", "check the path")

    bad.write(queries(ROWS))
    bad.succeeds()


def test_garbage_that_calls_itself_parquet(bad: Mistake) -> None:
    bad.source.write_bytes(b"not a table at all\n" * 50)

    bad.fails(WRONG_SOURCE, "source:", "queries.parquet", "cannot be read")

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_parquet_file_with_a_torn_page(bad: Mistake) -> None:
    whole = bad.source.read_bytes()
    bad.source.write_bytes(whole[:60] + bytes(60) + whole[120:])

    bad.fails(WRONG_SOURCE, "source:", "queries.parquet", "cannot be read")


def test_a_column_that_is_not_there_has_a_near_name(bad: Mistake) -> None:
    bad.job["request"]["user"] = "{txet}"
    bad.fails(WRONG_SOURCE, "request.user", "'txet'", "text")
    bad.fails(WRONG_SOURCE, "request.user", "'txet'", "text", command="check", lines=3)

    bad.job["request"]["user"] = "{text}"
    bad.succeeds()


def test_a_column_whose_type_has_no_text(bad: Mistake) -> None:
    bad.write(with_column("text", pa.array([b"\x00\xff"] * ROWS)))
    bad.fails(WRONG_SOURCE, "request.user", "'text'", "binary has no text", "cast it to text")

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_date_that_no_calendar_has(bad: Mistake) -> None:
    days = pa.array([0] * 3 + [2**31 - 1] + [0] * (ROWS - 4), pa.int32()).view(pa.date32())
    bad.write(queries(ROWS).append_column("day", days))
    bad.job["request"]["user"] = "{day}: {text}"

    bad.fails(WRONG_SOURCE, "'day'", "row 3", "2147483647 is no time of the calendar")


def test_a_nested_field_that_is_not_there_has_a_near_name(bad: Mistake) -> None:
    where = pa.array([{"city": "Ulm"}] * ROWS)
    bad.write(queries(ROWS).append_column("where", where))
    bad.job["request"]["user"] = "{where.ctiy}: {text}"
    bad.fails(WRONG_SOURCE, "request.user", "'ctiy'", "city")

    bad.job["request"]["user"] = "{where.city}: {text}"
    bad.succeeds()


def test_a_schema_that_gives_no_columns(bad: Mistake) -> None:
    good = bad.job["request"]["output"]
    bad.job["request"]["output"] = {"label": {"allOf": [{"type": "string"}, {"minLength": 1}]}}
    bad.fails(WRONG_COMMAND, "request.output.label", "allOf of several schemas", "merge them")

    bad.job["request"]["output"] = good
    bad.succeeds()


@pytest.mark.parametrize("name", ["key", "keep"])
def test_a_key_or_kept_column_that_is_not_there(bad: Mistake, name: str) -> None:
    bad.job[name] = ["query_idd"]

    bad.fails(WRONG_SOURCE, f"{name}: the source has no column 'query_idd'", "query_id")


def test_a_misspelt_field(bad: Mistake) -> None:
    bad.job["bugdet"] = bad.job.pop("budget")
    bad.job["route"]["model"] = ["gpt-4o-mini"]

    bad.fails(
        WRONG_COMMAND,
        "bugdet: there is no such field; did you mean 'budget'? (line 1)",
        "budget: is missing",
        "route.model: there is no such field; did you mean 'models'?",
        lines=4,
    )


def test_a_key_that_is_null(bad: Mistake) -> None:
    keys = [f"q{row:05d}" for row in range(ROWS)]
    bad.write(with_column("query_id", pa.array([*keys[:5], None, *keys[6:]])))

    bad.fails(WRONG_SOURCE, "query_id", "NULL", "row 5")

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_key_that_stands_twice(bad: Mistake) -> None:
    keys = [f"q{row:05d}" for row in range(ROWS)]
    bad.write(with_column("query_id", pa.array([*keys[:7], keys[2]])))

    bad.fails(WRONG_SOURCE, "query_id", "q00002", "2", "7")

    bad.write(queries(ROWS))
    bad.succeeds()


@pytest.mark.parametrize("name", ["text", "query_id"])
def test_text_that_is_not_utf8(bad: Mistake, name: str) -> None:
    bad.write(with_column(name, not_utf8()))

    bad.fails(WRONG_SOURCE, name, "row 3", "UTF-8")

    bad.write(queries(ROWS))
    bad.succeeds()


def test_a_null_in_the_template_is_an_error_until_the_job_says_what_to_do(bad: Mistake) -> None:
    texts = queries(ROWS).column("text").to_pylist()
    bad.write(with_column("text", pa.array([texts[0], None, *texts[2:]])))

    bad.fails(WRONG_SOURCE, "text", "row 1", "NULL", "on_null")

    bad.job["on_null"] = "skip"
    receipt = bad.succeeds()
    assert receipt["rows"]["skipped"] == 1
    assert receipt["rows"]["succeeded"] == ROWS - 1
    landed = bad.table()
    assert landed.column("_status").to_pylist()[1] == "skipped"
    assert landed.column("intent").to_pylist()[1] is None


def test_a_null_may_count_as_empty_text(bad: Mistake) -> None:
    texts = queries(ROWS).column("text").to_pylist()
    bad.write(with_column("text", pa.array([texts[0], None, *texts[2:]])))
    bad.job["on_null"] = "empty"

    assert bad.succeeds()["rows"]["succeeded"] == ROWS


def test_a_table_without_rows_lands_a_typed_table_and_buys_nothing(bad: Mistake) -> None:
    bad.write(queries(0))

    receipt = bad.succeeds(bought=0)

    assert sum(receipt["rows"].values()) == 0
    landed = bad.table()
    assert landed.num_rows == 0
    assert landed.schema.field("intent").type == pa.string()
    assert landed.schema.field("_cost_usd").type == pa.decimal128(38, 12)


def test_a_prompt_full_of_braces_is_sent_as_it_stands(bad: Mistake) -> None:
    bad.job["request"]["system"] = 'Answer {"intent": "card", "why": {"a": [{}]}} or \\{text}. {{}}'
    bad.job["request"]["user"] = '{"query": "{text}", "as": {"json": true}}'

    assert bad.succeeds()["rows"]["succeeded"] == ROWS
    manifest = next(bad.runs.glob("*/*/manifest/*")).read_text()
    assert '\\"json\\": true' in manifest


def test_a_sink_that_is_a_file(bad: Mistake) -> None:
    bad.sink.write_text("yesterday's notes")

    bad.fails(NO_TABLE, "labelled must be a folder", "name another sink")

    assert bad.sink.read_text() == "yesterday's notes"
    bad.sink.unlink()
    bad.succeeds()


def test_a_sink_with_other_columns_is_refused_before_anything_is_bought(bad: Mistake) -> None:
    (bad.sink / "yesterday").mkdir(parents=True)
    pq.write_table(
        pa.table({"query_id": [1], "label": ["x"]}), bad.sink / "yesterday" / "r.parquet"
    )

    bad.fails(
        NO_TABLE, "labelled", "query_id is int64 in the table and string now", "label (string)"
    )

    bad.job["sink"] = "labelled_again"
    bad.succeeds()


def test_a_sink_of_an_unknown_kind(bad: Mistake) -> None:
    bad.job["sink"] = "detla:lake/labelled"
    bad.fails(WRONG_COMMAND, "sink: there is no sink 'detla'", "delta")

    bad.job["sink"] = "nowhere://lake/labelled"
    bad.fails(WRONG_COMMAND, "sink", "nowhere")


def test_a_credential_in_the_job_is_refused_and_not_repeated(bad: Mistake) -> None:
    secret = "bk_live_" + "a1b2c3d4" * 4
    bad.job["request"]["system"] = f"Use {secret}"
    bad.job["sink"] = "s3://me:hunter2hunter2@lake/labelled"

    told = bad.fails(WRONG_COMMAND, "request.system", "sink", "environment", lines=5)

    assert secret not in told
    assert "hunter2" not in told
