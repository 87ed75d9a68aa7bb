"""A router that has more to do than it can: it says so, and says when to ask again."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

QUESTION = {"models": ["gpt-4o-mini"], "task": "responses", "estimated_items": 1}


def test_a_database_that_others_hold_is_a_503_with_a_wait(
    open_surface: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrouter.server.storage.sqlite._BUSY_TIMEOUT_MS", 100)
    surface = open_surface()
    path = surface.services.folder.database
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        refused = surface.client.post("/v1/quotes/model", json=QUESTION)

        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "router_busy"
        assert refused.headers["Retry-After"] == "2"
        other.execute("ROLLBACK")

    assert surface.client.post("/v1/quotes/model", json=QUESTION).status_code == 200
