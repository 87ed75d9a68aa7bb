"""The kinds of tables that the tests of this folder go through."""

from pathlib import Path

import pytest

from core.sinks.kinds import KINDS, Kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    made = KINDS[request.param]
    if request.param == "postgresql":
        found: Kind = made(tmp_path, request.getfixturevalue("postgres_url"))
    else:
        found = made(tmp_path)
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    if request.param == "iceberg":
        from pyiceberg.utils.config import Config

        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read at import
    return found
