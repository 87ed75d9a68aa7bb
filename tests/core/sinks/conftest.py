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
    found.enter(monkeypatch)
    return found
