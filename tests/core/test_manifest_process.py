"""A build and a landing in our own program load no pandas; in a user's process it works after."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import fsspec, pyarrow as pa, pyarrow.parquet as pq
{before}
from batchrouter.job import Chat, Job, Route
from batchrouter.landing.land import LandingIdentity, PartToLand, land_parts
from batchrouter.landing.sinks import open_sink
from batchrouter.manifest.build import build_manifest
folder = sys.argv[1]
schema = pa.schema([("id", pa.int64()), ("body", pa.string())])
job = Job(name="j", source=folder + "/in.parquet", key="id", sink=folder + "/table", budget=1,
          request=Chat(user="{{body}}", output={{"n": {{"type": "integer"}}}}), keep="body",
          route=Route(models=["m"]))
fs = fsspec.filesystem("file")
built = build_manifest(job, fs=fs, manifest_dir=folder, rows_dir=folder, token="t")
part = PartToLand(0, folder + "/" + built.parts[0].rows_path, built.row_count)
identity = LandingIdentity("j", "r", "r-0")
land_parts(job, fs=fs, parts=[part], sink=open_sink(folder + "/table"), identity=identity,
           rejects_dir=folder, token="t")
print("pandas" in sys.modules)
print(pa.table({{"a": [1]}}).to_pandas()["a"][0])
import pandas as pd
print(pa.array(pd.Series([float("nan")])).null_count)
"""


def _run(folder: Path, before: str) -> list[str]:
    make = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq;"
        "pq.write_table(pa.table({'id': [1, 2], 'body': ['a', 'b']}), sys.argv[1] + '/in.parquet')"
    )
    subprocess.run([sys.executable, "-c", make, str(folder)], check=True)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before), str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return out.stdout.splitlines()


def test_our_own_process_builds_and_lands_without_pandas(tmp_path: Path) -> None:
    before = "from batchrouter.manifest.process import own_process; own_process()"

    assert _run(tmp_path, before) == ["False", "1", "1"]


def test_a_users_process_is_left_as_it_is(tmp_path: Path) -> None:
    assert _run(tmp_path, "") == ["True", "1", "1"]


def test_arrow_allocates_by_jemalloc_in_our_own_process_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = (
        "{before}import pyarrow as pa; import batchrouter.manifest.build;"
        "pa.array([1]); print(pa.default_memory_pool().backend_name)"
    )

    def pool(before: str) -> str:
        command = [sys.executable, "-c", program.format(before=before)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert not done.stderr
        return done.stdout.strip()

    ours = "from batchrouter.manifest.process import own_process; own_process();"
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    assert pool(ours) == "jemalloc"
    assert pool("") != "jemalloc"
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")
    assert pool(ours) == "system"
