"""What Airflow sees of the provider: its description, connection, link, decorator and plugin."""

import json
import subprocess
import sys
from importlib.resources import files
from pkgutil import resolve_name
from typing import Any

import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
from airflow_provider_batchrouter import get_provider_info
from airflow_provider_batchrouter.accounts import check_runs_are_shared
from airflow_provider_batchrouter.hooks import BatchrouterHook

from batchrouter.errors import ConfigError
from batchrouter.testing import RunningRouter


def test_the_description_is_valid_against_airflows_schema() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())

    jsonschema.validate(get_provider_info(), schema)


def test_every_class_that_is_named_exists() -> None:
    info = get_provider_info()
    paths = [each["hook-class-name"] for each in info["connection-types"]]
    paths += [each["class-name"] for each in info["task-decorators"]]
    paths += [each["plugin-class"] for each in info["plugins"]] + info["extra-links"]
    modules = [
        name
        for kind in ("hooks", "operators", "sensors", "triggers")
        for each in info[kind]
        for name in each["python-modules"]
    ]

    assert all(resolve_name(":".join(path.rsplit(".", 1))) for path in paths)
    assert all(resolve_name(name) for name in modules)


def test_airflow_finds_it_all() -> None:
    manager = ProvidersManager()

    assert manager.providers["airflow-provider-batchrouter"].data["name"] == "Batchrouter"
    assert "airflow_provider_batchrouter.links.BatchrouterBatchLink" in (
        manager.extra_links_class_names
    )
    tasks = ProvidersManagerTaskRuntime()
    assert tasks.hooks["batchrouter"].connection_type == "batchrouter"
    assert "batchrouter" in tasks.taskflow_decorators
    assert "batchrouter" in [each.name for each in manager.plugins]


def test_a_dag_file_loads_neither_http_nor_tables() -> None:
    script = (
        "import sys, airflow.sdk, airflow.providers.common.compat.sdk\n"
        "before = set(sys.modules)\n"
        "import airflow_provider_batchrouter.operators\n"
        "import airflow_provider_batchrouter.sensors\n"
        "import airflow_provider_batchrouter.decorators\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'batchrouter', 'pyarrow', 'duckdb', 'httpx', 'sqlalchemy'}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )

    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_connection_answers_a_test(connect: Any, router: RunningRouter) -> None:
    assert BatchrouterHook().test_connection()[0]
    connect(password="bk_live_wrong")
    worked, message = BatchrouterHook().test_connection()
    assert not worked
    assert "bk_live_wrong" not in message
    connect(host="http://127.0.0.1:9")
    assert BatchrouterHook().test_connection()[0] is False


def test_a_wrong_field_names_the_connection_and_the_field(connect: Any) -> None:
    connect(extra={"pol_interval_s": 3})
    with pytest.raises(ConfigError, match=r"batchrouter_default.*pol_interval_s"):
        _ = BatchrouterHook().settings
    connect(extra={"max_run_usd": "many"})
    with pytest.raises(ConfigError, match="max_run_usd"):
        _ = BatchrouterHook().settings


def test_a_connection_in_uri_form_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_BATCHROUTER_DEFAULT",
        "batchrouter://:bk_live_1@router.example:8443/?runs_url=s3%3A%2F%2Flake%2F_runs",
    )

    settings = BatchrouterHook().settings

    assert settings.base_url == "https://router.example:8443"
    assert settings.runs_url == "s3://lake/_runs"
    assert "bk_live_1" not in repr(settings)


def test_a_relative_runs_url_stands_in_airflows_home(connect: Any) -> None:
    connect(extra={"runs_url": None})

    assert BatchrouterHook().settings.runs_url.endswith("/batchrouter/runs")


@pytest.mark.parametrize(
    ("executor", "extra", "is_refused"),
    [
        ("LocalExecutor", {}, False),
        ("CeleryExecutor", {}, True),
        ("LocalExecutor,KubernetesExecutor", {}, True),
        ("LocalExecutor,mine:my.module.EdgeExecutor", {}, True),
        ("CeleryExecutor", {"runs_are_shared": True}, False),
    ],
)
def test_a_runs_url_that_workers_cannot_share_is_refused(
    connect: Any,
    monkeypatch: pytest.MonkeyPatch,
    executor: str,
    extra: dict[str, Any],
    *,
    is_refused: bool,
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    connect(extra=extra)

    if is_refused:
        with pytest.raises(ConfigError, match="other machines, where a retry would not find"):
            _ = BatchrouterHook().run_settings
        shared = BatchrouterHook().settings.replace(runs_url="s3://lake/_runs")
        check_runs_are_shared(shared, {}, "batchrouter_default")
    else:
        assert BatchrouterHook().run_settings
