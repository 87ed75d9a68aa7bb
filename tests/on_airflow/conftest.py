"""Airflow for the unit tests: a home of its own, made before Airflow is imported."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrouter.testing import RunningRouter, running_router
from on_airflow.lanes import lane

_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
}


CONFIG = {
    "credits": {"initial_usd": "100000"},
    "lanes": [
        lane("quick", 3),
        lane("long", 20),
        lane("endless", 600),
        lane("flaky", failure_rate=0.5),
    ],
}


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router"), config=CONFIG) as running:
        yield running


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, router: RunningRouter, tmp_path: Path) -> Any:
    """Define the default connection, to the embedded router; give fields to change it."""

    def define(**changes: Any) -> None:
        extra = {
            "runs_url": str(tmp_path / "runs"),
            "poll_interval_s": "0.5",
            **changes.pop("extra", {}),
        }
        fields = {
            "conn_type": "batchrouter",
            "host": router.base_url,
            "password": router.api_key,
            "extra": {name: value for name, value in extra.items() if value is not None},
            **changes,
        }
        monkeypatch.setenv("AIRFLOW_CONN_BATCHROUTER_DEFAULT", json.dumps(fields))

    define()
    return define


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A job over a small table with a partition a day."""
    rows = pa.table({"id": list(range(12)), "text": [f"text {number}" for number in range(12)]})
    (tmp_path / "day=1").mkdir()
    pq.write_table(rows, tmp_path / "day=1" / "t.parquet")
    return {
        "name": "label",
        "params": {"day": "1"},
        "source": f"{tmp_path}/day=${{params.day}}",
        "key": "id",
        "request": {
            "kind": "chat",
            "user": "{text}",
            "parameters": {"max_output_tokens": 8},
        },
        "route": {"models": ["quick"]},
        "budget": "5.00",
        "sink": str(tmp_path / "labelled"),
    }
