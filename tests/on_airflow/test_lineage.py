"""What a landed table tells of itself: OpenLineage, asset events, connections of a source."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow_provider_batchrouter.jobs import airflow_connections, load_job
from airflow_provider_batchrouter.operators import BatchrouterRunJobOperator

from batchrouter.errors import ConfigError
from on_airflow.tasks import Task, to_the_end


@pytest.mark.usefixtures("connect")
def test_source_table_rows_and_cost_are_told(job: dict[str, Any], tmp_path: Path) -> None:
    made: list[BatchrouterRunJobOperator] = []

    def make() -> BatchrouterRunJobOperator:
        made.append(BatchrouterRunJobOperator(task_id="label", job=job, deferrable=True))
        return made[-1]

    receipt = to_the_end(make, Task(run_id="lineage"))

    told = made[-1].get_openlineage_facets_on_complete(None)
    [source], [table] = told.inputs, told.outputs
    assert (source.namespace, source.name) == ("file", f"{tmp_path}/day=1")
    assert (table.namespace, table.name) == ("file", str(tmp_path / "labelled"))
    assert table.outputFacets["outputStatistics"].rowCount == 12
    assert told.run_facets["batchrouter"].settled_usd == receipt["settled_usd"]
    assert made[0].get_openlineage_facets_on_failure(None).outputs == []


@pytest.mark.usefixtures("connect")
def test_outlets_get_counts_and_cost(job: dict[str, Any], tmp_path: Path) -> None:
    alias, asset = AssetAlias("labelled"), Asset("s3://lake/labelled")
    events: dict[Any, Any] = {
        alias: SimpleNamespace(added=[]),
        asset: SimpleNamespace(extra={}),
    }
    events[alias].add = lambda table, extra: events[alias].added.append((table.uri, extra))

    def make() -> BatchrouterRunJobOperator:
        return BatchrouterRunJobOperator(
            task_id="label", job=job, deferrable=False, outlets=[alias, asset]
        )

    make().execute({**Task(run_id="outlets").context, "outlet_events": events})

    [(uri, extra)] = events[alias].added
    assert uri == (tmp_path / "labelled").as_uri()
    assert extra["rows"]["succeeded"] == events[asset].extra["row_count"] == 12


def query_job(job: dict[str, Any]) -> Any:
    source = {"sql": "select * from t", "connection": "warehouse"}
    return load_job({**job, "source": source, "params": {}})


def test_a_jobs_connection_is_airflows(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "conn_type": "postgres",
        "host": "db",
        "port": 5433,
        "login": "ann",
        "password": "p@ss/word",
        "schema": "lake",
        "extra": {"sslmode": "require"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields))

    with airflow_connections(query_job(job)):
        url = os.environ["BATCHROUTER_CONNECTION_WAREHOUSE"]

    assert url == "postgresql://ann:p%40ss%2Fword@db:5433/lake?sslmode=require"
    assert "BATCHROUTER_CONNECTION_WAREHOUSE" not in os.environ


def test_a_connection_that_airflow_does_not_have_is_named(job: dict[str, Any]) -> None:
    with (
        pytest.raises(ConfigError, match="'warehouse', and Airflow has none"),
        airflow_connections(query_job(job)),
    ):
        pass
