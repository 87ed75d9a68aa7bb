"""Requests that would hurt the router, or fool it: each gets its 4xx, soon."""

import base64
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from batchrouter.server.delivery.schedule import DeliverySchedule
from batchrouter.server.storage import retention, vault
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.retention import end_retention
from batchrouter.server.storage.tables import (
    batch_lanes,
    batches,
    chunks,
    events,
    files,
    idempotency_keys,
    quotes,
    workspaces,
)
from batchrouter.server.storage.vault import Vault

MIB = 1024 * 1024
WEBHOOK = {"url": "http://127.0.0.1:9/h", "secret": "whsec_0123456789"}


def cursor(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0100099999"},
        {"limit": "00001" + "9" * 5_000},
        {"limit": "²"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "abc"},
        {"updated_after": "0001-01-01T00:00:00+23:59"},
        {"updated_after": "9999-12-31T23:59:59-23:59"},
        {"after": cursor(b"[" * 20_000)},
        {"after": cursor(b'[1,"\\ud800"]')},
        {"after": cursor(b'[1e999,"batch_1"]')},
        {"after": cursor(b"[" + b"9" * 5_000 + b',"batch_1"]')},
        {"after": "\u00e9"},
        {"after": "%"},
    ],
    ids=lambda query: str(query)[:60],
)
def test_a_wrong_list_query_is_a_400_whatever_it_holds(surface: Any, query: dict[str, str]) -> None:
    reply = surface.client.get("/v1/batches", params=query)

    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"].startswith(next(iter(query)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "crowd",
    [
        b'"items":[' + b",".join([b"1"] * 2_000_000) + b"]",
        b'"input_file_id":"f","metadata":{%b}'
        % b",".join(b'"%d":1' % nth for nth in range(500_000)),
        b'"input_file_id":"f",' + b",".join(b'"f%d":1' % nth for nth in range(500_000)),
    ],
    ids=["items", "metadata", "fields"],
)
def test_millions_of_wrong_values_are_told_of_once(surface: Any, crowd: bytes) -> None:
    started = time.monotonic()

    reply = surface.client.post("/v1/batches", content=b'{"quote_id":"q",%b}' % crowd)

    assert reply.status_code == 400
    assert len(reply.content) < 10_000
    assert time.monotonic() - started < 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b'{"quote_id": NaN}',
        b'{"quote_id": "a", "quote_id": "b"}',
        b'{"quote_id": ' + b"1" * 5_000 + b"}",
        b'{"quote_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"quote_id": "\xff"}',
        b'{"quote_id": "\\ud800"}',
    ],
    ids=lambda body: repr(body[:40]),
)
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/quotes/model", "/v1/quotes/workflow"])
def test_a_body_that_is_no_json_is_a_400(surface: Any, path: str, body: bytes) -> None:
    reply = surface.client.post(path, content=body, headers={"Content-Type": "text/plain"})

    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_request"
    assert reply.headers["Date"]
    assert reply.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "0.0.0.0",
        "[::2]",
        "[",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/batches", "/docs", "/artifacts/b.jsonl"])
def test_a_page_that_points_its_name_here_gets_nothing(surface: Any, host: str, path: str) -> None:
    reply = surface.client.get(path, headers={"Host": host})

    # The HTTP parser itself refuses an empty Host.
    assert reply.status_code == 421 or (host == "" and reply.status_code == 400)
    assert "location" not in reply.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null"])
def test_a_page_of_another_origin_may_not_even_post(surface: Any, origin: str) -> None:
    reply = surface.client.post("/v1/batches", json={}, headers={"Origin": origin})

    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "origin_not_allowed"


def test_its_own_names_and_pages_and_those_of_the_configuration_are_served(
    open_surface: Any,
) -> None:
    surface = open_surface(public_url="https://files.example/x", allowed_hosts=["router.lan"])

    for host in ("localhost", "LOCALHOST:80", "[::1]:9", "files.example", "router.lan:8443"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert surface.client.get("/v1/batches", headers=own).status_code == 200


def test_beyond_loopback_the_proxy_in_front_decides_on_names(open_surface: Any) -> None:
    surface = open_surface(is_loopback=False)

    asked = {"Host": "router.example", "Origin": "https://app.example"}
    assert surface.client.get("/v1/batches", headers=asked).status_code == 200


def test_a_trailing_slash_leads_nowhere_else(open_surface: Any) -> None:
    surface = open_surface(is_loopback=False)
    reply = surface.client.get("/v1/batches/", headers={"Host": "evil.example"})

    assert reply.status_code == 404
    assert "location" not in reply.headers


def test_what_stands_behind_the_part_counts_as_well(open_surface: Any, make_manifest: Any) -> None:
    surface = open_surface(limits={"manifest_bytes": MIB})
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'

    def endless() -> Any:
        yield head + make_manifest(1) + b"\r\n--b--\r\n"
        for _ in range(64):
            yield b"x" * MIB

    reply = surface.client.post(
        "/v1/batches/input-manifests",
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )

    assert reply.status_code == 413
    assert reply.json()["error"]["details"]["max_bytes"] == MIB
    assert surface.stored() == []


@pytest.mark.parametrize("other", [-1_000_000, "x", 6.5])
def test_no_line_can_make_an_item_cost_less_than_nothing(surface: Any, other: Any) -> None:
    body = {"input": "hi", "max_output_tokens": 5, "max_completion_tokens": other}
    line = {"customer_item_id": "a", "operation": "responses", "input": body}

    reply = surface.post_manifest(json.dumps(line).encode())

    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_manifest"


def test_links_of_partial_output_are_not_stored_by_caches(surface: Any) -> None:
    batch_id = surface.buy()["id"]

    reply = surface.client.get(f"/v1/batches/{batch_id}?include_partial_output=true")

    assert reply.headers["Cache-Control"] == "no-store"


def test_a_key_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret_key"

    def power_cut(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(vault.os, "fsync", power_cut)
        with pytest.raises(KeyboardInterrupt):
            Vault.open(path)

    token = Vault.open(path).encrypt("whsec_demo")
    assert Vault.open(path).decrypt(token) == "whsec_demo"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [left.name for left in tmp_path.iterdir()] == ["secret_key"]


def test_the_last_retry_comes_while_a_bare_signature_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = DeliverySchedule()
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)

    longest_s = sum(schedule.wait_s(attempt) for attempt in range(1, schedule.attempts))

    assert longest_s <= 25 * 3600 - schedule.attempts * schedule.timeout_s


def test_retention_ends_as_many_as_are_over(surface: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    for _ in range(5):
        surface.finish(surface.buy()["id"], "failed")
    with surface.services.database.writing() as conn:
        ended_at = now_us() - 8 * 86_400_000_000
        conn.execute(update(batches).values(artifact_expires_at=1, completed_at=ended_at))

    end_retention(surface.services)

    with surface.services.database.reading() as conn:
        assert set(conn.execute(select(batches.c.artifact_key)).scalars()) == {None}
        assert None not in set(conn.execute(select(files.c.deleted_at)).scalars())
    assert surface.stored() == []


def test_a_batch_of_long_ago_goes_with_all_that_is_its_own_but_its_cost(surface: Any) -> None:
    old, kept, owed = (surface.buy(webhook=WEBHOOK) for _ in range(3))
    for each in (old, kept, owed):
        surface.finish(each["id"], "failed")
    gone = now_us() - 401 * 86_400_000_000
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(artifact_expires_at=1))
        conn.execute(
            update(batches)
            .where(batches.c.id.in_([old["id"], owed["id"]]))
            .values(completed_at=gone)
        )
        conn.execute(update(files).values(created_at=gone, deleted_at=gone))
        conn.execute(update(events).values(created_at=gone, next_attempt_at=None))
        conn.execute(
            update(events).where(events.c.batch_id == owed["id"]).values(next_attempt_at=2**60)
        )
        before = conn.execute(select(workspaces)).all()

    end_retention(surface.services)

    assert surface.client.get(f"/v1/batches/{old['id']}").status_code == 404
    for each in (kept, owed):
        assert surface.client.get(f"/v1/batches/{each['id']}").status_code == 200
    with surface.services.database.reading() as conn:
        for table in (chunks, batch_lanes, events, idempotency_keys):
            assert old["id"] not in set(conn.execute(select(table.c.batch_id)).scalars())
        assert set(conn.execute(select(events.c.batch_id)).scalars()) == {owed["id"]}
        assert old["quote_id"] not in set(conn.execute(select(quotes.c.id)).scalars())
        left = set(conn.execute(select(files.c.id)).scalars())
        assert left == {kept["input_file_id"], owed["input_file_id"]}
        assert conn.execute(select(workspaces)).all() == before


def test_the_api_describes_keys_parameters_and_refusals_as_they_are(surface: Any) -> None:
    document = surface.client.get("/openapi.json").json()

    listing = document["paths"]["/v1/batches"]["get"]
    named = {parameter["name"] for parameter in listing["parameters"]}
    assert named == {"limit", "after", "state", "updated_after", "view"}
    submitting = document["paths"]["/v1/batches"]["post"]
    assert [parameter["name"] for parameter in submitting["parameters"]] == ["Idempotency-Key"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert ("security" in operation) == path.startswith("/v1/")


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_only_the_named_pages_are_open(surface: Any, path: str) -> None:
    assert surface.client.get(path).status_code == 404
    assert surface.client.get("/docs").status_code == 200
