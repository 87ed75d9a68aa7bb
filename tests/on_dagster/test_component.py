"""The component: as YAML in a project, as `dg` scaffolds it, and beside another of its kind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from dagster_batchrouter import BatchrouterJobComponent

EXAMPLE = Path(__file__).parents[2] / "examples" / "dagster"

JOB = """
name: label
params: {day: null}
source: t/${params.day}.csv
key: id
request: {kind: chat, user: 'Say {{ no }} to Jinja: {body}'}
route: {models: [gpt-4o-mini]}
budget: 1.00
sink: labelled
"""

DEFS: dict[str, Any] = {
    "type": "dagster_batchrouter.BatchrouterJobComponent",
    "attributes": {
        "job": "job.yaml",
        "asset": {
            "key": "lake/labelled",
            "group_name": "lake",
            "owners": ["team:data"],
            "tags": {"domain": "support"},
            "deps": ["tickets"],
            "partitions_def": {"type": "daily", "start_date": "2026-11-01"},
        },
        "checks": {"max_failed_share": 0.2, "blocking": True},
        "connection": {"base_url": "http://127.0.0.1:1", "api_key": "bk_live_secret"},
    },
}


def load(attributes: dict[str, Any] | None = None) -> dg.Definitions:
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=BatchrouterJobComponent,
            defs_yaml_contents={
                **DEFS,
                "attributes": {**DEFS["attributes"], **(attributes or {})},
            },
        )
        (path / "job.yaml").write_text(JOB)
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            assert isinstance(component, BatchrouterJobComponent)
            defs.get_repository_def()
            return defs


def test_the_yaml_gives_assets_checks_and_sensors() -> None:
    defs = load()

    graph = defs.resolve_asset_graph()
    table = graph.get(dg.AssetKey(["lake", "labelled"]))
    submission = graph.get(dg.AssetKey(["lake", "labelled_submission"]))
    assert table.parent_keys == {submission.key}
    assert submission.parent_keys == {dg.AssetKey("tickets")}
    assert {each.group_name for each in (table, submission)} == {"lake"}
    assert submission.owners == ["team:data"]
    assert table.tags["domain"] == "support"
    assert table.kinds == {"batchrouter", "parquet"}
    assert isinstance(table.partitions_def, dg.DailyPartitionsDefinition)
    assert len(graph.asset_check_keys) == 4
    assert {each.name for each in defs.sensors or ()} == {
        "lake__labelled_sensor",
        "lake__labelled_cancel_sensor",
    }


def test_a_key_in_the_yaml_is_in_no_definition_that_dagster_shows() -> None:
    defs = load()

    assert not defs.resources
    repository = defs.get_repository_def()
    shown = [str(repository.get_top_level_resources())]
    shown += [str(each.metadata) for each in repository.asset_graph.asset_nodes]
    assert not any("bk_live_secret" in each for each in shown)


def test_without_a_sensor_of_its_own_there_is_none() -> None:
    assert not load({"sensor": False}).sensors
    assert not load({"mode": "blocking"}).sensors


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"job": "jbo.yaml"}, "jbo.yaml: cannot be read"),
        ({"checks": {"max_failed_share": 2}}, "max_failed_share: 2.0 is not between 0 and 1"),
        ({"partition_params": {"dya": "{key}"}}, "declares no such parameter"),
        ({"mode": "later"}, "mode"),
    ],
)
def test_a_mistake_is_told_when_definitions_load(attributes: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception) as caught:
        load(attributes)

    chain: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or error.__context__
    assert told in "\n".join(chain)


def dg_command(*arguments: str, cwd: Path) -> str:
    env = {"PYTHONPATH": str(cwd / "src"), "BATCHROUTER_API_KEY": "bk_live_1", "HOME": str(cwd)}
    import os

    done = subprocess.run(
        [str(Path(sys.executable).with_name("dg")), *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(400)
def test_dg_scaffolds_lists_and_checks_it(tmp_path: Path) -> None:
    package = tmp_path / "src" / "proj"
    (package / "defs").mkdir(parents=True)
    for path in (package, package / "defs"):
        (path / "__init__.py").touch()
    (package / "definitions.py").write_text(
        (EXAMPLE / "src/ticket_labels/definitions.py").read_text()
    )
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "proj"\nversion = "0"\n[tool.dg]\ndirectory_type = "project"\n'
        '[tool.dg.project]\nroot_module = "proj"\n'
    )
    name = "dagster_batchrouter.BatchrouterJobComponent"

    dg_command("scaffold", "defs", name, "labels", "--asset-key", "lake/labels", cwd=tmp_path)
    written = yaml.safe_load((package / "defs/labels/defs.yaml").read_text())
    listed = dg_command("list", "components", "--package", "dagster_batchrouter", cwd=tmp_path)
    dg_command("check", "yaml", cwd=tmp_path)
    dg_command("check", "defs", cwd=tmp_path)
    found = json.loads(dg_command("list", "defs", "--json", cwd=tmp_path))

    assert written["attributes"]["asset"] == {"key": "lake/labels"}
    assert "BatchrouterJobComponent" in listed
    assert "lake/labels_submission" in json.dumps(found)


@pytest.mark.drill
def test_the_example_project_passes_dg_and_dagster(tmp_path: Path) -> None:
    import shutil

    project = tmp_path / "project"
    shutil.copytree(
        EXAMPLE, project, ignore=shutil.ignore_patterns("router", "runs", "__pycache__")
    )

    dg_command("check", "defs", cwd=project)
    found = json.dumps(json.loads(dg_command("list", "defs", "--json", cwd=project)))

    for name in ("tickets_labelled", "complaints_submission", "intents_by_day"):
        assert name in found
