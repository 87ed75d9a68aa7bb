"""The registry of kill points is what the source says, no more and no less."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import batchrouter
from batchrouter.testing import KILL_POINTS

SOURCE = Path(batchrouter.__file__).parent


def _reached() -> list[str]:
    """Every argument of `reached`, as a regular expression: an f-string's holes match a word."""
    return [
        _pattern(node.args[0], path)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _is_reached(node.func)
    ]


def _is_reached(function: ast.expr) -> bool:
    match function:
        case ast.Name(id="reached") | ast.Attribute(attr="reached"):
            return True
        case _:
            return False


def _pattern(argument: ast.expr, path: Path) -> str:
    match argument:
        case ast.Constant(value=str(name)):
            return re.escape(name)
        case ast.JoinedStr(values=parts):
            return "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z_]+"
                for part in parts
            )
        case _:
            raise AssertionError(f"{path}:{argument.lineno}: name the kill point in place")


def test_every_point_in_the_source_is_registered() -> None:
    unknown = [
        each for each in _reached() if not any(re.fullmatch(each, name) for name in KILL_POINTS)
    ]

    assert unknown == [], "add them to batchrouter/testing/kill_points.py"


def test_every_registered_point_is_in_the_source() -> None:
    patterns = _reached()

    gone = [name for name in KILL_POINTS if not any(re.fullmatch(each, name) for each in patterns)]

    assert gone == [], "take them out of batchrouter/testing/kill_points.py"


def test_every_journal_event_has_its_two_points() -> None:
    from batchrouter.run import events

    types = {
        fact.model_fields["type"].default
        for fact in vars(events).values()
        if isinstance(fact, type) and "type" in getattr(fact, "model_fields", {})
    }

    listed = {name.partition("_")[2] for name in KILL_POINTS if name.startswith("journal.before_")}
    assert listed == types


def test_names_are_unique() -> None:
    assert len(set(KILL_POINTS)) == len(KILL_POINTS)


def _passing(point: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"from batchrouter.killpoints import reached\nfor _ in range(3): reached({point!r})\n"
    return subprocess.run(
        [sys.executable, "-c", code + "print('alive')"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_process_dies_at_the_pass_that_was_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "passed.log"

    died = _passing(
        "build.before", BATCHROUTER_KILL_AT="build.before:2", BATCHROUTER_KILL_LOG=str(log)
    )

    assert died.returncode == -9
    assert log.read_text() == "build.before\n" * 2


def test_a_process_passes_points_that_were_not_asked_for() -> None:
    lived = _passing("build.after", BATCHROUTER_KILL_AT="build.before")

    assert (lived.returncode, lived.stdout) == (0, "alive\n")
