"""What an import costs: a DAG file is parsed every few seconds and must stay light."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "dbos",
    "duckdb",
    "fastapi",
    "fsspec",
    "httpx",
    "msgspec",
    "numpy",
    "pyarrow",
    "pydantic",
    "sqlalchemy",
    "yaml",
}


def heavy_after(statement: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has loaded after a statement."""
    script = f"import sys, json\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return HEAVY & set(json.loads(done.stdout))


def test_the_package_alone_loads_nothing_heavy() -> None:
    assert heavy_after("import batchrouter") == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import batchrouter.errors, batchrouter.money, batchrouter.killpoints",
        "import batchrouter.webhooks.signing, batchrouter.webhooks.inbox",
    ],
)
def test_errors_money_and_signatures_load_nothing_heavy(statement: str) -> None:
    assert heavy_after(statement) == set()


def test_settings_and_models_load_pydantic_only() -> None:
    assert heavy_after("from batchrouter import Settings") == {"pydantic"}
    assert heavy_after("import batchrouter.api.models") == {"pydantic"}


def test_a_job_loads_neither_http_nor_arrow() -> None:
    assert heavy_after("from batchrouter import Job") <= {"pydantic", "yaml"}


def test_a_client_loads_http_and_no_tables() -> None:
    assert heavy_after("from batchrouter import Client") == {"httpx", "pydantic"}


def test_a_receiver_loads_no_web_framework_and_no_database() -> None:
    assert heavy_after("import batchrouter.webhooks.receiver") == set()


def test_every_public_name_can_be_had_and_no_other() -> None:
    import batchrouter

    assert set(dir(batchrouter)) == set(batchrouter.__all__)
    for name in batchrouter.__all__:
        assert getattr(batchrouter, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = batchrouter.Nonsense
