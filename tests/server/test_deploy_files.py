"""The files in `deploy/` name commands, flags, settings and files that exist."""

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from batchrouter.cli.program import program
from batchrouter.server.storage.folder import SECRET_KEY_VARIABLE
from batchrouter.server.storage.places import DATABASE_VARIABLE, OBJECTS_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Read a command line as the program does, and run nothing."""
    name, *rest = arguments
    command = program.get_command(click.Context(program), name)
    assert command is not None, f"there is no command {name}"
    exists = {"/etc/router.toml": ROOT / "core/src/batchrouter/server/default_router.toml"}
    given = [str(exists.get(part, part)) for part in rest]
    return name, command.make_context(name, given).params


@pytest.mark.parametrize("service", OURS)
def test_each_service_runs_a_command_that_there_is(service: str) -> None:
    name, options = parse([str(part) for part in SERVICES[service]["command"]])
    assert name == ("migrate" if service == "migrate" else "serve")
    if name == "serve":
        assert options["role"] == service
        assert options["allow_public_host"]


def test_the_image_runs_a_command_that_there_is() -> None:
    assert re.search(r'^ENTRYPOINT \["batchrouter"\]$', CONTAINERFILE, re.MULTILINE)
    [command] = re.findall(r"^CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    name, _ = parse(yaml.safe_load(command))
    assert name == "serve"


def test_the_image_copies_files_that_there_are() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    assert copied
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"\[(\w+)\]\"", CONTAINERFILE):
        assert extra in extras["optional-dependencies"]


@pytest.mark.parametrize("service", OURS)
def test_each_service_gets_the_variables_that_are_read(service: str) -> None:
    given = set(SERVICES[service]["environment"])
    assert {name for name in given if name.startswith("BATCHROUTER_")} == {
        DATABASE_VARIABLE,
        OBJECTS_VARIABLE,
        SECRET_KEY_VARIABLE,
    }
    assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= given


def test_what_a_service_waits_for_and_mounts_is_there() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        named = {str(volume).partition(":")[0] for volume in service.get("volumes", ())}
        assert {one for one in named if not one.startswith(".")} <= set(COMPOSE["volumes"]), name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_document_names_replicas_as_they_are() -> None:
    told = (ROOT / "docs" / "deploying.md").read_text()
    assert SERVICES["api"]["deploy"]["replicas"] == 2
    assert SERVICES["worker"]["deploy"]["replicas"] == 3
    assert "two API processes and three workers" in told
