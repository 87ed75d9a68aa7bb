"""Reading, listing and cancelling batches; receipts; artifact URLs and what they open."""

import hashlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest
from sqlalchemy import select, update

from batchrouter.server.batches import ledger, states
from batchrouter.server.batches.artifacts import signer_of
from batchrouter.server.serve import mint_key
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.keys import KeyLimits
from batchrouter.server.storage.tables import batch_lanes, batches, events, workspaces

CONTENT = b"".join(b'{"sequence_no":%d}\n' % number for number in range(1000))


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


def succeeded(surface, content=CONTENT):
    batch = surface.buy()
    surface.settle(batch["id"], completed=2, failed=1, cost_units=1_000_000_000)
    surface.finish(batch["id"], "succeeded", content)
    return batch["id"]


def link(surface, batch_id):
    reply = surface.client.get(f"/v1/batches/{batch_id}/artifact-url")
    assert reply.status_code == 200, reply.text
    return reply


def changed(url, **query):
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **query})))


def test_every_endpoint_answers_404_for_another_workspaces_batch(surface):
    batch = surface.buy()
    with surface.client_for(surface.mint(workspace="other")) as other:
        replies = [
            other.get(f"/v1/batches/{batch['id']}"),
            other.get(f"/v1/batches/{batch['id']}/artifact-url"),
            other.post(f"/v1/batches/{batch['id']}/cancel"),
        ]
        listed = other.get("/v1/batches").json()

    assert {code(reply) for reply in replies} == {(404, "batch_not_found")}
    assert listed == {"data": [], "has_more": False, "next_cursor": None}


@pytest.mark.parametrize(
    ("scopes", "path", "method"),
    [
        ("submit,read,cancel", "/v1/quotes/model", "POST"),
        ("submit,read,cancel", "/v1/quotes/workflow", "POST"),
        ("quote,read,cancel", "/v1/batches", "POST"),
        ("quote,read,cancel", "/v1/batches/input-manifests", "POST"),
        ("quote,submit,cancel", "/v1/batches", "GET"),
        ("quote,submit,cancel", "/v1/batches/batch_0", "GET"),
        ("quote,submit,cancel", "/v1/batches/batch_0/artifact-url", "GET"),
        ("quote,submit,read", "/v1/batches/batch_0/cancel", "POST"),
    ],
)
def test_every_endpoint_needs_its_scope_and_a_key(surface, scopes, path, method):
    with surface.client_for(surface.mint(scopes)) as short, surface.client_for(None) as nobody:
        refused, anonymous = short.request(method, path), nobody.request(method, path)

    assert code(refused) == (403, "insufficient_scope")
    assert code(anonymous) == (401, "unauthorized")
    assert anonymous.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_key_is_unknown_at_once(surface):
    from batchrouter.server.serve import revoke

    key = surface.mint()
    with surface.client_for(key) as client:
        before = client.get("/v1/batches").status_code
        assert revoke(surface.services.folder.root, key)
        after = client.get("/v1/batches")

    assert before == 200
    assert code(after) == (401, "unauthorized")


def test_pages_are_newest_first_and_stay_whole_while_batches_come_and_go(surface):
    ids = [surface.buy()["id"] for _ in range(5)]
    first = surface.client.get("/v1/batches", params={"limit": 2}).json()
    surface.buy()
    with surface.services.database.writing() as conn:
        # The batch that the cursor stands on goes.
        conn.execute(batch_lanes.delete().where(batch_lanes.c.batch_id == ids[3]))
        conn.execute(batches.delete().where(batches.c.id == ids[3]))
    second = surface.client.get(
        "/v1/batches", params={"limit": 2, "after": first["next_cursor"]}
    ).json()
    third = surface.client.get(
        "/v1/batches", params={"limit": 2, "after": second["next_cursor"]}
    ).json()

    pages = [[batch["id"] for batch in page["data"]] for page in (first, second, third)]
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    assert (first["has_more"], third["has_more"], third["next_cursor"]) == (True, False, None)


def test_batches_of_one_moment_are_paged_by_id(surface):
    ids = sorted((surface.buy()["id"] for _ in range(4)), reverse=True)
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(created_at=1_000_000))

    seen, cursor = [], None
    while True:
        params = {"limit": 1} | ({"after": cursor} if cursor else {})
        page = surface.client.get("/v1/batches", params=params).json()
        seen += [batch["id"] for batch in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break

    assert seen == ids


def test_the_list_can_be_cut_by_state_and_change_and_shown_short(surface):
    done, waiting = succeeded(surface), surface.buy()["id"]
    later = surface.client.get(f"/v1/batches/{waiting}").json()["updated_at"]

    by_state = surface.client.get("/v1/batches", params={"state": ["succeeded", "failed"]}).json()
    by_change = surface.client.get("/v1/batches", params={"updated_after": later}).json()
    short = surface.client.get("/v1/batches", params={"view": "summary"}).json()

    assert [batch["id"] for batch in by_state["data"]] == [done]
    assert [batch["id"] for batch in by_change["data"]] == [waiting]
    assert [batch.keys() for batch in short["data"]] == [
        {"id", "state", "counts", "updated_at"}
    ] * 2


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"after": "nonsense"}, "after"),
        ({"after": "WzFd"}, "after"),
        ({"after": "é"}, "after"),
        ({"after": "WyIxIiwyXQ"}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"state": "done"}, "state"),
        ({"updated_after": "yesterday"}, "updated_after"),
        ({"updated_after": "2026-11-22T00:00:00"}, "updated_after"),
        ({"view": "tiny"}, "view"),
        ({"order": "asc"}, "order"),
    ],
)
def test_a_wrong_list_parameter_is_named(surface, params, path):
    reply = surface.client.get("/v1/batches", params=params)

    assert code(reply) == (400, "invalid_request")
    assert reply.json()["error"]["message"].startswith(f"{path}: ")


def test_a_settled_batch_shows_what_it_cost_and_the_receipt_adds_up(surface):
    batch_id = succeeded(surface)

    batch = surface.client.get(
        f"/v1/batches/{batch_id}", params={"include_billing_receipt": "true"}
    ).json()

    # 0.001 USD to the provider and 5.90 % of it.
    settled = {"currency": "usd", "amount": "0.001059"}
    assert (batch["state"], batch["settled_total"]) == ("succeeded", settled)
    assert batch["counts"] == {
        "total": 3, "pending": 0, "running": 0, "completed": 2, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert batch["lanes"][0]["settled_price"] == {
        "currency": "usd",
        "provider_subtotal": "0.001",
        "batchrouter_fee": "0.000059",
        "total": "0.001059",
    }
    assert batch["lanes"][0]["usage"] == {
        "input_tokens": 30, "output_tokens": 12, "total_tokens": 42,
    }  # fmt: skip
    receipt = batch["billing_receipt"]
    assert receipt["quoted_price"] == batch["pricing_estimate"]
    assert receipt["settled_price"]["total"] == "0.001059"
    assert receipt["usage"] == {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
    assert receipt["possibly_repeated"] == 0
    assert all(not lane["selected"] for lane in receipt["rejected_lanes"])
    quoted = float(batch["quoted_total"]["amount"])
    credit = {name: float(amount["amount"]) for name, amount in receipt["credits"].items()}
    assert credit["reserved"] == quoted
    assert credit["charged"] == 0.001059
    assert credit["charged"] + credit["released"] == pytest.approx(quoted, abs=1e-12)
    assert credit["overrun"] == 0


def test_an_open_batch_has_no_settled_price_yet(surface):
    batch = surface.client.get(
        f"/v1/batches/{surface.buy()['id']}", params={"include_billing_receipt": "true"}
    ).json()

    receipt = batch["billing_receipt"]
    assert (receipt["settled_price"], receipt["settled_total"]) == (None, None)
    assert receipt["credits"]["charged"]["amount"] == "0.00"


def test_the_charge_never_passes_the_quote_and_the_overrun_is_shown(surface):
    before = credits_of(surface)
    batch = surface.buy()
    quoted_micro = int(float(batch["quoted_total"]["amount"]) * 10**6)
    over_units = quoted_micro * 10**6 * 2
    with surface.services.database.writing() as conn:
        conn.execute(
            update(batches).where(batches.c.id == batch["id"]).values(settled_units=over_units)
        )
    surface.client.post(f"/v1/batches/{batch['id']}/cancel")
    surface.finish(batch["id"], "cancelled")

    shown = surface.client.get(
        f"/v1/batches/{batch['id']}", params={"include_billing_receipt": "true"}
    ).json()

    assert shown["settled_total"] == shown["quoted_total"] == batch["quoted_total"]
    credit = shown["billing_receipt"]["credits"]
    assert credit["charged"] == credit["reserved"]
    assert credit["released"]["amount"] == "0.00"
    assert credit["overrun"] == batch["quoted_total"]
    assert credits_of(surface) == (before[0] - quoted_micro, 0, quoted_micro)


def credits_of(surface):
    with surface.services.database.reading() as conn:
        row = conn.execute(select(workspaces)).one()
    return row.balance_micro, row.reserved_micro, row.spent_micro


def test_a_chunk_is_claimed_only_while_its_worst_case_fits_under_the_quote(surface):
    batch = surface.buy()
    quoted_units = int(float(batch["quoted_total"]["amount"]) * 10**6) * 10**6
    surface.settle(batch["id"], completed=1, failed=0, cost_units=0)
    with surface.services.database.writing() as conn:
        columns = {
            "batch_id": batch["id"],
            "lane_position": 0,
            "first_item": 1,
            "item_count": 1,
            "byte_start": 0,
            "byte_end": 1,
            "state": "planned",
            "updated_at": now_us(),
        }
        for number in (1, 2):
            conn.execute(ledger.chunks.insert().values(number=number, **columns))
        assert not ledger.claim_chunk(conn, batch["id"], 1, quoted_units + 1)
        assert not ledger.claim_chunk(conn, batch["id"], 1, 2**80)
        assert ledger.claim_chunk(conn, batch["id"], 1, quoted_units)
        assert not ledger.claim_chunk(conn, batch["id"], 2, 1)
        # After a crash it is claimed again, its old worst case replaced and not added.
        assert ledger.claim_chunk(conn, batch["id"], 1, quoted_units - 1)
        assert ledger.claim_chunk(conn, batch["id"], 2, 1)
        assert ledger.return_chunk(conn, batch["id"], 2)
        outcome = ledger.ChunkOutcome("done", 1, 0, cost_units=7)
        assert ledger.settle_chunk(conn, batch["id"], 1, outcome)
        assert not ledger.settle_chunk(conn, batch["id"], 1, outcome)
        row = conn.execute(select(batches)).one()
    assert (row.in_flight_units, row.running, row.completed) == (0, 0, 2)
    assert row.settled_units == 7 + 1


def test_a_batch_ends_once_with_its_money_and_its_event(surface):
    batch = surface.buy(webhook={"url": "https://example.com/hook", "secret": "whsec_..."})
    surface.settle(batch["id"], completed=3, failed=0, cost_units=10**9)
    surface.finish(batch["id"], "succeeded")
    after = credits_of(surface)

    with surface.services.database.writing() as conn:
        assert not states.finish(conn, batch["id"], "failed")
        assert not states.move(conn, batch["id"], "cancelling")
        assert ledger.settle_batch(conn, batch["id"]) is None
        types = conn.execute(select(events.c.type).order_by(events.c.created_at)).scalars().all()

    assert credits_of(surface) == after
    assert types == ["batch.submitted", "batch.completed"]


def test_progress_is_told_at_most_every_30_seconds(surface):
    batch = surface.buy(webhook={"url": "https://example.com/hook", "secret": "whsec_..."})

    with surface.services.database.writing() as conn:
        told = [states.record_progress(conn, batch["id"]) for _ in range(3)]
        conn.execute(update(batches).values(progress_event_at=now_us() - 30_000_000))
        told.append(states.record_progress(conn, batch["id"]))

    assert told == [True, False, False, True]


@pytest.mark.parametrize("state", ["queued", "routing", "running"])
def test_cancel_moves_to_cancelling_and_again_is_the_same(surface, state):
    batch_id = surface.buy()["id"]
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(state=state))

    first = surface.client.post(f"/v1/batches/{batch_id}/cancel")
    again = surface.client.post(f"/v1/batches/{batch_id}/cancel")

    assert (first.status_code, first.json()["state"]) == (202, "cancelling")
    assert again.status_code == 202
    assert again.json() == first.json()


@pytest.mark.parametrize("state", ["finalizing", "succeeded", "failed", "cancelled", "expired"])
def test_a_batch_that_is_ending_or_has_ended_cannot_be_cancelled(surface, state):
    batch_id = surface.buy()["id"]
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(state=state))

    reply = surface.client.post(f"/v1/batches/{batch_id}/cancel")

    assert code(reply) == (409, "batch_not_cancellable")
    assert reply.json()["error"]["details"] == {"state": state}


@pytest.mark.parametrize(("state", "final"), [("running", False), ("failed", True)])
def test_an_artifact_that_is_not_there_says_whether_it_will_ever_be(surface, state, final):
    batch_id = surface.buy()["id"]
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(state=state, completed_at=1 if final else None))

    reply = surface.client.get(f"/v1/batches/{batch_id}/artifact-url")

    assert code(reply) == (409, "artifact_not_ready")
    assert reply.json()["error"]["details"] == {"state": state, "final": final}


def test_the_url_opens_the_artifact_without_a_key(surface):
    batch_id = succeeded(surface)

    reply = link(surface, batch_id)
    told = reply.json()
    got = httpx.get(told["url"])

    assert reply.headers["Cache-Control"] == "no-store"
    assert told["format"] == "jsonl"
    assert told["batch_id"] == batch_id
    assert told["file_id"].startswith("file_")
    assert (told["bytes"], told["sha256"]) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=890) < left <= timedelta(seconds=900)
    assert (got.status_code, got.content) == (200, CONTENT)
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Referrer-Policy"] == "no-referrer"
    assert got.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, len(CONTENT)),
        ("bytes=10-19", 10, 20),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        (f"bytes=-{10**9}", 0, len(CONTENT)),
        (f"bytes=3-{10**9}", 3, len(CONTENT)),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_url_answers_ranges_and_head(surface, asked, start, end, method):
    url = link(surface, succeeded(surface)).json()["url"]

    got = httpx.request(method, url, headers={"Range": asked})

    assert got.status_code == 206
    assert got.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert got.headers["Content-Length"] == str(end - start)
    assert got.content == (CONTENT[start:end] if method == "GET" else b"")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=x"])
def test_a_range_that_means_nothing_gets_the_whole(surface, asked):
    url = link(surface, succeeded(surface)).json()["url"]

    got = httpx.get(url, headers={"Range": asked})

    assert (got.status_code, got.content) == (200, CONTENT)


def test_a_range_behind_the_end_is_a_416_with_the_size(surface):
    url = link(surface, succeeded(surface)).json()["url"]

    got = httpx.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})

    assert code(got) == (416, "range_not_satisfiable")
    assert got.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_resumed_read_of_a_changed_artifact_starts_over(surface):
    url = link(surface, succeeded(surface)).json()["url"]
    etag = httpx.head(url).headers["ETag"]

    same = httpx.get(url, headers={"Range": "bytes=5-", "If-Range": etag})
    other = httpx.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'})

    assert (same.status_code, other.status_code) == (206, 200)


def test_a_forged_url_opens_nothing(surface):
    batch_id, other = succeeded(surface), succeeded(surface, b"secret\n")
    url = link(surface, batch_id).json()["url"]
    forged = [
        changed(url, expires="9999999999"),
        changed(url, signature="0" * 64),
        changed(url, signature="é"),
        changed(url, key="0" * 16),
        url.replace(batch_id, other),
        url.split("?")[0],
        changed(url, expires="x"),
    ]

    replies = [httpx.get(one) for one in forged]

    assert {code(reply) for reply in replies} == {(403, "url_signature_invalid")}
    assert httpx.post(url).status_code == 405


def test_an_expired_url_says_so_and_a_fresh_one_works(surface):
    batch_id = succeeded(surface)
    path = f"/artifacts/{batch_id}.jsonl"
    expired = signer_of(surface.services).sign(path, expires_s=now_us() // 1_000_000 - 1)

    assert code(httpx.get(f"{surface.base_url}{path}", params=expired)) == (403, "url_expired")
    assert httpx.get(link(surface, batch_id).json()["url"]).status_code == 200


def test_the_urls_base_is_the_configured_one_and_never_the_host_header(open_surface):
    surface = open_surface(public_url="https://files.example.com/router", is_loopback=False)
    batch_id = succeeded(surface)

    told = surface.client.get(
        f"/v1/batches/{batch_id}/artifact-url", headers={"Host": "evil.example.com"}
    ).json()

    assert told["url"].startswith("https://files.example.com/router/artifacts/batch_")


def test_an_artifact_is_gone_when_its_time_is_over(surface):
    batch_id = succeeded(surface)
    url = link(surface, batch_id).json()["url"]
    with surface.services.database.writing() as conn:
        conn.execute(update(batches).values(artifact_expires_at=1))

    assert code(surface.client.get(f"/v1/batches/{batch_id}/artifact-url")) == (
        410,
        "artifact_expired",
    )
    assert code(httpx.get(url)) == (410, "artifact_expired")


@pytest.mark.parametrize(("state", "has_output"), [("cancelled", True), ("failed", True)])
def test_a_batch_that_ended_early_gives_what_it_completed(surface, state, has_output):
    batch = surface.buy()
    surface.settle(batch["id"], completed=2, failed=1, cost_units=10)
    if state == "cancelled":
        surface.client.post(f"/v1/batches/{batch['id']}/cancel")
    surface.finish(batch["id"], state, CONTENT)

    plain = surface.client.get(f"/v1/batches/{batch['id']}").json()
    shown = surface.client.get(
        f"/v1/batches/{batch['id']}", params={"include_partial_output": "true"}
    ).json()

    assert "partial_output" not in plain
    assert shown["partial_output"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert httpx.get(shown["partial_output"]["url"]).content == CONTENT


def test_there_is_no_partial_output_of_a_batch_that_succeeded_or_still_runs(surface):
    for batch_id in (succeeded(surface), surface.buy()["id"]):
        shown = surface.client.get(
            f"/v1/batches/{batch_id}", params={"include_partial_output": "true"}
        ).json()
        assert shown["partial_output"] is None


def test_over_the_rate_limit_there_is_a_429_with_the_wait(open_surface):
    surface = open_surface(limits={"requests_per_minute": 3})

    replies = [surface.client.get("/v1/batches") for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert code(replies[3]) == (429, "rate_limited")
    assert 1 <= int(replies[3].headers["Retry-After"]) <= 20
    with surface.client_for(surface.mint()) as other:
        assert other.get("/v1/batches").status_code == 200


def test_a_key_has_a_rate_limit_of_its_own(open_surface):
    surface = open_surface(limits={"requests_per_minute": 3})
    free = mint_key(surface.services.folder.root, limits=KeyLimits(requests_per_minute=0))
    slow = mint_key(surface.services.folder.root, limits=KeyLimits(requests_per_minute=1))
    with surface.client_for(free) as client:
        assert {client.get("/v1/batches").status_code for _ in range(6)} == {200}
    with surface.client_for(slow) as client:
        assert [client.get("/v1/batches").status_code for _ in range(2)] == [200, 429]


def test_a_key_buys_no_more_than_its_budget(open_surface):
    surface = open_surface()
    price = Decimal(surface.quote()["quoted_total"]["amount"])
    limits = KeyLimits(budget_micro=int(price * 1_500_000))
    key = mint_key(surface.services.folder.root, limits=limits)
    with surface.client_for(key) as surface.client:
        first = surface.buy()["id"]
        quote_id, file_id = surface.quote()["quote_id"], surface.upload()["file_id"]
        refused = surface.submit(quote_id=quote_id, input_file_id=file_id)
        assert code(refused) == (402, "insufficient_credits")
        assert "left of this API key's budget" in refused.json()["error"]["message"]

        # What its first batch did not cost is free again; the refused quote is still open.
        surface.settle(first, completed=3, failed=0, cost_units=10**6)
        surface.finish(first, "succeeded")
        again = surface.submit(quote_id=quote_id, input_file_id=file_id)
        assert again.status_code == 202, again.text


def test_every_reply_carries_a_request_id_and_the_date(surface):
    replies = [
        surface.client.get("/healthz"),
        surface.client.get("/v1/batches"),
        surface.client.get("/nowhere"),
        surface.client.delete("/v1/batches"),
        httpx.get(f"{surface.base_url}/v1/batches"),
    ]

    assert [reply.status_code for reply in replies] == [200, 200, 404, 405, 401]
    assert all(reply.headers["Date"] for reply in replies)
    assert len({reply.headers["X-Request-Id"] for reply in replies}) == 5
    assert all("error" in reply.json() for reply in replies[2:])
    named = surface.client.get("/healthz", headers={"X-Request-Id": "mine-7"})
    assert named.headers["X-Request-Id"] == "mine-7"


def test_the_api_describes_itself(surface):
    described = surface.client.get("/openapi.json").json()

    assert described["paths"].keys() >= {
        "/v1/quotes/model",
        "/v1/quotes/workflow",
        "/v1/batches/input-manifests",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/artifact-url",
        "/v1/batches/{batch_id}/cancel",
    }
    body = described["paths"]["/v1/batches"]["post"]["requestBody"]["content"]
    assert "quote_id" in body["application/json"]["schema"]["properties"]
    assert surface.client.get("/docs").status_code == 200


def test_an_unforeseen_failure_has_an_error_id_and_tells_nothing_else(surface, monkeypatch):
    from batchrouter.server.http import routes

    def broken(*_arguments):
        raise RuntimeError("a prompt that nobody may see")

    monkeypatch.setattr(routes, "list_batches", broken)

    reply = surface.client.get("/v1/batches")

    assert code(reply) == (500, "internal_error")
    assert reply.json()["error"]["details"]["error_id"].startswith("err_")
    assert "prompt" not in reply.text


def test_retention_lets_go_of_what_is_over_and_of_nothing_else(surface):
    from batchrouter.server.storage.retention import end_retention

    day_us = 86_400_000_000
    unused, used, done = surface.upload(), surface.buy(), succeeded(surface)
    with surface.services.database.writing() as conn:
        conn.exec_driver_sql("UPDATE files SET created_at = created_at - ?", (8 * day_us,))
        conn.execute(
            update(batches)
            .where(batches.c.id == done)
            .values(completed_at=now_us() - 8 * day_us, artifact_expires_at=1)
        )
    done_file = surface.client.get(f"/v1/batches/{done}").json()["input_file_id"]

    end_retention(surface.services)

    assert surface.stored() == [f"manifests/{used['input_file_id']}.jsonl"]
    for file_id in (unused["file_id"], done_file):
        reply = surface.submit(quote_id=surface.quote()["quote_id"], input_file_id=file_id)
        assert code(reply) == (404, "file_not_found")
