"""Job files are read by YAML 1.2's core schema, and wrong ones say where."""

from decimal import Decimal
from pathlib import Path

import pytest

from batchrouter.errors import JobError
from batchrouter.job.documents import parse_yaml, read_document


def test_labels_that_look_like_booleans_and_dates_stay_text() -> None:
    data = parse_yaml("a: [yes, no, on, off, y, n, 2026-11-22, 12:30:45, 1_000]").data

    assert data["a"] == ["yes", "no", "on", "off", "y", "n", "2026-11-22", "12:30:45", "1_000"]


def test_core_schema_scalars_have_their_types() -> None:
    data = parse_yaml("a: true\nb: null\nc: ~\nd: 0x1F\ne: 0o17\nf: -7").data

    assert data == {"a": True, "b": None, "c": None, "d": 31, "e": 15, "f": -7}


def test_fractions_are_exact_in_yaml_toml_and_json(tmp_path: Path) -> None:
    texts = {"j.yaml": "budget: 25.10", "j.toml": "budget = 25.10", "j.json": '{"budget": 25.10}'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)

        assert read_document(tmp_path / name).data == {"budget": Decimal("25.10")}
        assert str(read_document(tmp_path / name).data["budget"]) == "25.10"


def test_names_of_fields_are_text_whatever_they_look_like() -> None:
    assert parse_yaml("on: 1\n1: 2\nnull: 3").data == {"on": 1, "1": 2, "null": 3}


def test_a_repeated_key_is_refused_with_both_lines() -> None:
    with pytest.raises(JobError, match=r"route\.models: stands twice, first in line 2.*\(line 4\)"):
        parse_yaml("route:\n  models: [a]\n  x: 1\n  models: [b]")


def test_a_repeated_json_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text('{"name": 1, "name": 2}')

    with pytest.raises(JobError, match="name: stands twice"):
        read_document(tmp_path / "j.json")


def test_a_syntax_error_names_the_line() -> None:
    with pytest.raises(JobError, match=r"is not YAML: .* \(line 2\)"):
        parse_yaml("a: 1\nb: [1, 2")


@pytest.mark.parametrize("text", ["- a", "", "7", "just text"])
def test_something_else_than_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="must be a mapping"):
        parse_yaml(text)


def test_endless_aliases_are_refused() -> None:
    with pytest.raises(JobError, match="aliases make it endless"):
        parse_yaml("a: &a [*a]")
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    with pytest.raises(JobError, match="aliases make it endless"):
        parse_yaml(laughs)


def test_tags_run_nothing() -> None:
    with pytest.raises(JobError, match="has no meaning here"):
        parse_yaml("a: !x 1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("job.ini", b"", "cannot tell the format"),
        ("job.yaml", b"a: \xff", "is not UTF-8 at byte 3"),
        ("job.toml", b"a = ", "is not TOML"),
        ("job.json", b"{", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(JobError, match=message):
        read_document(tmp_path / name)


def test_a_missing_file_is_a_job_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="No such file"):
        read_document(tmp_path / "job.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j.yaml").write_bytes(b"\xef\xbb\xbfname: a")

    assert read_document(tmp_path / "j.yaml").data == {"name": "a"}
