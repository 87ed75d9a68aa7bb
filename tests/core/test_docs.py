"""What the pages show is true: jobs load, marked Python runs, tables name what there is."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from batchrouter import Job, Settings, errors
from batchrouter.api.settings import ENV_PREFIX
from batchrouter.cli.failures import EXIT_CODES, code_of
from batchrouter.job import Parts, Route
from batchrouter.server.config import (
    LaneConfig,
    Limits,
    ModelPrice,
    WorkflowConfig,
    load_config,
)
from batchrouter.server.lanes.simulated import SimulatedOptions

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^(<!-- runnable -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    is_runnable: bool
    shown: str
    """The block without a language that follows at once: what the code prints."""


def blocks(language: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text("utf-8")
        found = list(FENCE.finditer(text))
        for each, after in zip_longest(found, found[1:]):
            if each[2] != language:
                continue
            follows = after is not None and not text[each.end() : after.start()].strip()
            shown = after[3] if after is not None and follows and not after[2] else ""
            line = text.count("\n", 0, each.start()) + 1
            yield Block(page, line, language, each[3], bool(each[1]), shown)


def named(found: Iterator[Block]) -> list[object]:
    return [pytest.param(each, id=f"{each.page.name}:{each.line}") for each in found]


def jobs() -> Iterator[Block]:
    for block in blocks("yaml"):
        fields = re.findall(r"^(\w+):", block.text, re.MULTILINE)
        if {"name", "request"} <= set(fields):
            yield block


@pytest.mark.parametrize("block", named(jobs()))
def test_every_job_that_is_shown_loads(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(block.text, "utf-8")

    assert Job.from_file(path).name


@pytest.mark.parametrize("block", named(b for b in blocks("python") if b.is_runnable))
def test_marked_python_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == block.shown


@pytest.mark.parametrize("block", named(blocks("python")))
def test_all_python_compiles(block: Block) -> None:
    compile(block.text, str(block.page), "exec")


@pytest.mark.parametrize("block", named(blocks("toml")))
def test_every_router_toml_is_accepted(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(block.text, "utf-8")

    assert load_config(path).lanes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {_anchor(each) for each in headings}, link


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_the_job_page_names_every_field() -> None:
    text = page("job.md")

    assert [each for each in Job.model_fields if f"| [`{each}`](#" not in text] == []
    assert [each for each in Route.model_fields if f"| `{each}` |" not in text] == []
    assert [each for each in Parts.model_fields if each not in text] == []


def test_the_job_page_has_the_table_of_renderings() -> None:
    from batchrouter.manifest import rendering

    rows = [line for line in (rendering.__doc__ or "").splitlines() if line.startswith("|")]
    names = [row.split("|")[1].strip() for row in rows[2:]]

    assert len(names) > 10
    assert [name for name in names if f"| {name} |" not in page("job.md")] == []


def test_the_router_page_names_every_setting() -> None:
    text = page("router.md")
    wanted = [
        *LaneConfig.model_fields,
        *ModelPrice.model_fields,
        *SimulatedOptions.__dataclass_fields__,
        *(each for each in WorkflowConfig.model_fields if each != "fields"),
        *(each for each in Limits.model_fields if "manifest_line" not in each),
    ]

    named_there = set(re.findall(r"`(?:\w+\.)?(\w+)`", text))
    assert [each for each in wanted if each not in named_there] == []


def test_the_client_page_names_every_setting_with_its_variable() -> None:
    text = page("client.md")

    for each in Settings.model_fields:
        assert f"| `{each}` | `{ENV_PREFIX}{each.upper()}` |" in text


def test_the_client_page_has_every_error_with_code_and_exit_code() -> None:
    text = page("client.md")
    for name in errors.__all__:
        kind = getattr(errors, name)
        if name in {"BatchrouterError", "api_error"}:
            continue
        row = next(line for line in text.splitlines() if f"`{name}` |" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == f"`{kind.code}`"
        assert cells[3] == ("yes" if kind.retryable else "")
        assert int(cells[4]) == code_of(kind.__new__(kind))
        assert int(cells[4]) in EXIT_CODES


def test_each_rule_of_security_names_code_and_tests_that_there_are() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"(?:::|`)(test_\w+)", SECURITY)) - {"test_no_secret_written"}
    paths = set(re.findall(r"`((?!DATA)(?:[\w-]+/)+[\w-]*(?:\.py)?)", SECURITY))
    package = ROOT / "core" / "src" / "batchrouter"

    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in tests} == set()
    homes = (package, package / "server", ROOT / "tests", ROOT)
    assert {p for p in paths if not any((home / p).exists() for home in homes)} == set()
