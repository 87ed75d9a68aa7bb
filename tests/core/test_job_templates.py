r"""Only `{identifier}` and `{identifier.path}` are placeholders; prompts may hold any JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.job.templates import Placeholder, Template


def _named(text: str) -> list[str]:
    return [str(placeholder) for placeholder in Template(text).placeholders]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{a}{b}", ["a", "b"]),
        ("{a} and {a}", ["a"]),
        ("{meta.city.name}", ["meta.city.name"]),
        ("{größe} {日本}", ["größe", "日本"]),
        ('{"a": [1, {}]}', []),
        ("{} { a } {1} {a b} {a-b} {a.} {.a} {{}} {a!r} {a:>10}", []),
        ('{"id": {id}}', ["id"]),
        ("{{a}}", ["a"]),
        (r"\{a}", []),
        (r"\\{a}", ["a"]),
    ],
)
def test_placeholders_are_told_from_text(text: str, names: list[str]) -> None:
    assert _named(text) == names


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ('{"id": {id}}', '{"id": 7}'),
        ("{{id}}", "{7}"),
        (r"\{id}", "{id}"),
        (r"\\{id}", "\\7"),
        (r"\\\{id}", r"\{id}"),
        (r"C:\dir\ {id} \n", r"C:\dir\ 7 \n"),
        ("", ""),
    ],
)
def test_rendering_fills_placeholders_only(text: str, rendered: str) -> None:
    assert Template(text).render(lambda _: "7") == rendered


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_in_a_prompt_stays_as_it_is(value: object) -> None:
    text = json.dumps(value, indent=1)

    # Inside a JSON string a brace may stand around a word; that one is a placeholder by design.
    if not Template(text).placeholders and "\\{" not in text:
        assert Template(text).render(lambda _: "never") == text


@given(st.text(alphabet="{}\\ab. \n"))
def test_no_text_is_lost(text: str) -> None:
    template = Template(text)
    literals = "".join(part for part in template.parts if isinstance(part, str))

    assert all(isinstance(part, str | Placeholder) for part in template.parts)
    assert len(literals) <= len(text)
    assert not any(part == "" for part in template.parts)


@given(st.text() | st.text(alphabet="{}.aé_1 \n\x00\u2028"))
def test_any_text_without_backslashes_is_itself_when_each_placeholder_stands_for_itself(
    text: str,
) -> None:
    text = text.replace("\\", "/")

    assert Template(text).render(lambda placeholder: f"{{{placeholder}}}") == text


@given(st.text(), st.integers(0, 5), st.text())
def test_backslashes_before_a_placeholder_halve_and_an_odd_one_makes_it_text(
    before: str, slashes: int, value: str
) -> None:
    before = before.replace("\\", "/").replace("{", "(")
    rendered = Template(before + "\\" * slashes + "{a}").render(lambda _: value)

    told = "{a}" if slashes % 2 else value
    assert rendered == before + "\\" * (slashes // 2) + told


@given(st.text(), st.dictionaries(st.sampled_from(["a", "b", "c.d"]), st.text(), min_size=3))
def test_a_value_is_never_read_as_a_template(text: str, values: dict[str, str]) -> None:
    text = text.replace("\\", "/").replace("{", "(")
    template = Template(f"{text}{{a}}{text}{{b}}{{c.d}}")

    rendered = template.render(lambda placeholder: values[str(placeholder)])

    assert rendered == text + values["a"] + text + values["b"] + values["c.d"]
