"""Buying: the order of checks, idempotency, races, credits, and what is written."""

import json
import threading

import pytest
from sqlalchemy import select, update

from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import (
    batch_lanes,
    batches,
    events,
    files,
    idempotency_keys,
    quotes,
    workspaces,
)

ITEM = {
    "customer_item_id": "a",
    "operation": "responses",
    "input": {"messages": [{"role": "user", "content": "hi"}]},
}
MISSING_FILE = "file_" + "0" * 32


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


def count(surface, table):
    with surface.services.database.reading() as conn:
        return len(conn.execute(select(table)).all())


def credits_of(surface):
    with surface.services.database.reading() as conn:
        row = conn.execute(select(workspaces).where(workspaces.c.name == "default")).one()
    return row.balance_micro, row.reserved_micro, row.spent_micro


def expire(surface, quote):
    with surface.services.database.writing() as conn:
        conn.execute(
            update(quotes).where(quotes.c.id == quote["quote_id"]).values(expires_at=now_us() - 1)
        )


def test_the_references_submit_is_answered_with_the_bare_batch(surface):
    quote = surface.quote(estimated_items=50000)
    file = surface.upload(items=3)

    reply = surface.submit(
        quote_id=quote["quote_id"],
        input_file_id=file["file_id"],
        routing_mode="cheapest",
        privacy_tier="standard",
        webhook={"url": "https://example.com/hook", "secret": "whsec_..."},
    )

    batch = reply.json()
    assert reply.status_code == 202
    assert batch.keys() == {
        "id", "state", "quote_id", "input_file_id", "routing_mode", "privacy_tier",
        "allowed_regions", "sla_tier", "deadline_at", "counts", "pricing_estimate",
        "quoted_total", "settled_total", "lanes", "routing_explanation", "webhook", "metadata",
        "created_at", "updated_at", "completed_at", "artifact_expires_at", "error",
    }  # fmt: skip
    assert batch["state"] == "queued"
    assert batch["counts"] == {
        "total": 3, "pending": 3, "running": 0, "completed": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    # A quote covers fewer items too, and its total stays.
    assert batch["quoted_total"] == quote["quoted_total"]
    assert batch["pricing_estimate"] == quote["pricing_estimate"]
    assert batch["webhook"] == {"url": "https://example.com/hook"}
    assert batch["settled_total"] is None
    (lane,) = batch["lanes"]
    assert (lane["item_count"], lane["settled_price"]) == (3, None)
    assert "Idempotent-Replayed" not in reply.headers


def test_inline_items_are_stored_as_a_file(surface):
    quote = surface.quote()

    batch = surface.submit(quote_id=quote["quote_id"], items=[ITEM]).json()

    assert batch["counts"]["total"] == 1
    assert surface.stored() == [f"manifests/{batch['input_file_id']}.jsonl"]
    stored = surface.services.folder.objects / f"manifests/{batch['input_file_id']}.jsonl"
    assert json.loads(stored.read_bytes()) == ITEM


@pytest.mark.parametrize(
    ("items", "issue"),
    [
        ([{**ITEM, "operation": "?"}], (1, "invalid_field")),
        ([ITEM, ITEM], (2, "duplicate_item_id")),
        ([{**ITEM, "metadata": {"x": "\ud800"}}], (1, "lone_surrogate")),
    ],
)
def test_bad_inline_items_are_told_by_line_and_leave_nothing(surface, items, issue):
    body = json.dumps({"quote_id": surface.quote()["quote_id"], "items": items})

    reply = surface.client.post("/v1/batches", content=body)

    if issue[1] == "lone_surrogate":
        # The body itself is no exact JSON then.
        assert code(reply) == (400, "invalid_request")
    else:
        assert code(reply) == (400, "invalid_manifest")
        (told,) = reply.json()["error"]["details"]["issues"]
        assert (told["line"], told["code"]) == issue
    assert (surface.stored(), count(surface, files), count(surface, batches)) == ([], 0, 0)


def test_too_many_inline_items_are_sent_to_the_upload(open_surface):
    surface = open_surface(limits={"inline_items": 1})

    reply = surface.submit(
        quote_id=surface.quote()["quote_id"], items=[ITEM, {**ITEM, "customer_item_id": "b"}]
    )

    assert code(reply) == (400, "invalid_request")
    assert "upload" in reply.json()["error"]["message"]


def test_a_body_over_the_limit_is_a_413(open_surface):
    surface = open_surface(limits={"json_body_bytes": 2000})

    reply = surface.submit(quote_id="q", items=[{**ITEM, "metadata": {"x": "y" * 3000}}])

    assert code(reply) == (413, "request_too_large")
    assert reply.json()["error"]["details"] == {"max_bytes": 2000}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input_file_id": "f"}, "quote_id"),
        ({"quote_id": "q"}, "body"),
        ({"quote_id": "q", "input_file_id": "f", "items": [ITEM]}, "body"),
        ({"quote_id": "q", "items": []}, "items"),
        ({"quote_id": "q", "items": [1]}, "items[0]"),
        (
            {"quote_id": "q", "input_file_id": "f", "webhook": {"url": "https://e.com"}},
            "webhook.secret",
        ),
        (
            {
                "quote_id": "q",
                "input_file_id": "f",
                "webhook": {"url": "https://e.com", "secret": "short"},
            },
            "webhook.secret",
        ),
        (
            {
                "quote_id": "q",
                "input_file_id": "f",
                "webhook": {"url": "ftp://e.com", "secret": "longenough"},
            },
            "webhook.url",
        ),
        ({"quote_id": "q", "input_file_id": "f", "metadata": {"a": 1}}, "metadata.a"),
        ({"quote_id": "q", "input_file_id": "f", "priority": 1}, "priority"),
    ],
)
def test_a_wrong_field_is_named_by_its_path_and_no_secret_is_shown(surface, body, path):
    reply = surface.submit(**body)

    assert code(reply) == (400, "invalid_request")
    assert reply.json()["error"]["message"].startswith(f"{path}: ")
    assert "short" not in reply.text


@pytest.mark.parametrize("key", ["short", "x" * 129])
def test_an_idempotency_key_has_8_to_128_characters(surface, key):
    assert code(surface.submit(key, quote_id="q", input_file_id="f")) == (400, "invalid_request")


def test_checks_come_in_the_contracts_order(surface):
    """Each row breaks its own check and every later one: the earliest answers."""
    other_key = surface.mint(workspace="other")
    bought = surface.buy()
    key = "order-of-checks"
    first = surface.quote()
    small = surface.quote(estimated_items=1, estimated_input_tokens=1)
    file = surface.upload(items=3)["file_id"]
    assert surface.submit(key, quote_id=first["quote_id"], input_file_id=file).status_code == 202
    expired = surface.quote()
    expire(surface, expired)
    wrong = {"privacy_tier": "zdr", "input_file_id": MISSING_FILE}
    with (
        surface.client_for("bk_live_nobody") as nobody,
        surface.client_for(surface.mint("quote")) as quoter,
        surface.client_for(other_key) as other,
    ):
        assert code(nobody.post("/v1/batches", content=b"?")) == (401, "unauthorized")
        assert code(quoter.post("/v1/batches", content=b"?")) == (403, "insufficient_scope")
        assert code(surface.client.post("/v1/batches", content=b"?")) == (400, "invalid_request")
        # Idempotency before the quote, which does not exist.
        assert code(surface.submit(key, quote_id="none", **wrong)) == (
            409,
            "idempotency_key_reused",
        )
        assert code(surface.submit(quote_id="none", **wrong)) == (404, "quote_not_found")
        # Another workspace's quote is none.
        stolen = other.post("/v1/batches", json={"quote_id": first["quote_id"], **wrong})
        assert code(stolen) == (404, "quote_not_found")
    # Accepted before expired.
    with surface.services.database.writing() as conn:
        conn.execute(
            update(quotes).where(quotes.c.id == bought["quote_id"]).values(expires_at=now_us() - 1)
        )
    accepted = surface.submit(quote_id=bought["quote_id"], **wrong)
    assert code(accepted) == (409, "quote_lock_already_accepted")
    assert accepted.json()["error"]["details"] == {"batch_id": bought["id"]}
    assert code(surface.submit(quote_id=expired["quote_id"], **wrong)) == (
        409,
        "quote_lock_expired",
    )
    mismatch = surface.submit(quote_id=small["quote_id"], **wrong)
    assert code(mismatch) == (409, "quote_lock_mismatch")
    assert mismatch.json()["error"]["details"] == {"fields": ["privacy_tier"]}
    gone = surface.submit(quote_id=small["quote_id"], input_file_id=MISSING_FILE)
    assert code(gone) == (404, "file_not_found")
    items = surface.submit(quote_id=small["quote_id"], input_file_id=file)
    assert code(items) == (409, "quote_lock_items_exceeded")


def test_what_repeats_the_quote_may_be_sent_and_regions_count_as_a_set(surface):
    quote = surface.quote(allowed_regions=["eu", "global"])

    reply = surface.submit(
        quote_id=quote["quote_id"],
        input_file_id=surface.upload()["file_id"],
        allowed_regions=["global", "eu"],
        sla_tier="standard",
        task="responses",
    )

    assert reply.status_code == 202


def test_more_tokens_than_a_tenth_over_the_quote_are_refused(surface):
    file = surface.upload(items=10)
    tokens = file["input_tokens_estimate"]
    enough = -(-tokens * 10 // 11)
    assert enough < tokens

    for estimated, status in ((enough // 10 - 1, 409), (-(-enough // 10), 202)):
        quote = surface.quote(estimated_items=10, estimated_input_tokens=estimated)
        reply = surface.submit(quote_id=quote["quote_id"], input_file_id=file["file_id"])
        assert reply.status_code == status, reply.text
        if status == 409:
            assert code(reply) == (409, "quote_lock_usage_exceeded")


def test_an_items_own_cap_may_not_pass_the_quotes(surface, make_manifest):
    lines = make_manifest(1, input={**ITEM["input"], "max_output_tokens": 101})
    file = surface.upload(lines)["file_id"]

    over = surface.submit(
        quote_id=surface.quote(max_output_tokens=100)["quote_id"], input_file_id=file
    )
    within = surface.submit(
        quote_id=surface.quote(max_output_tokens=101)["quote_id"], input_file_id=file
    )

    assert code(over) == (409, "quote_lock_usage_exceeded")
    assert within.status_code == 202


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"model": "claude-haiku-5"}, ["model"]),
        ({"operation": "embeddings", "input": {"input": "x"}}, ["operation"]),
    ],
)
def test_a_manifest_for_something_else_than_was_quoted_is_a_mismatch(
    surface, make_manifest, changes, fields
):
    file = surface.upload(make_manifest(1, **changes))

    reply = surface.submit(quote_id=surface.quote()["quote_id"], input_file_id=file["file_id"])

    assert code(reply) == (409, "quote_lock_mismatch")
    assert reply.json()["error"]["details"] == {"fields": fields}


@pytest.mark.parametrize(
    ("fields", "mismatch"),
    [
        ({"body": "late card"}, None),
        ({"subject": "card", "body": "late", "labels": ["billing", "bug"]}, None),
        ({"subject": "card"}, ["input.body"]),
        ({"body": 7}, ["input.body"]),
        ({"body": "x", "labels": "bug"}, ["input.labels"]),
        ({"body": "x", "labels": []}, ["input.labels"]),
        ({"body": "x", "mood": "angry"}, ["input.mood"]),
    ],
)
def test_a_workflows_manifest_has_the_workflows_fields(surface, fields, mismatch):
    line = {"customer_item_id": "a", "input": fields}
    file = surface.upload(json.dumps(line).encode())
    quote = surface.client.post(
        "/v1/quotes/workflow",
        json={"workflow": "classify-support-tickets@v3", "estimated_items": 1},
    ).json()

    reply = surface.submit(quote_id=quote["quote_id"], input_file_id=file["file_id"])

    if mismatch is None:
        assert reply.status_code == 202
    else:
        assert code(reply) == (409, "quote_lock_mismatch")
        assert reply.json()["error"]["details"] == {"fields": mismatch}


def test_a_model_manifest_does_not_fit_a_workflow_nor_the_other_way(surface, make_manifest):
    workflow = surface.client.post(
        "/v1/quotes/workflow", json={"workflow": "classify-support-tickets", "estimated_items": 9}
    ).json()
    lines = json.dumps({"customer_item_id": "a", "input": {"body": "x"}}).encode()

    one = surface.submit(quote_id=workflow["quote_id"], input_file_id=surface.upload()["file_id"])
    other = surface.submit(
        quote_id=surface.quote()["quote_id"], input_file_id=surface.upload(lines)["file_id"]
    )

    assert code(one) == code(other) == (409, "quote_lock_mismatch")


def test_too_few_credits_are_a_402_with_both_amounts_and_nothing_is_bought(open_surface):
    surface = open_surface(credits={"initial_usd": "0.005"})
    quote = surface.quote()

    reply = surface.submit(quote_id=quote["quote_id"], input_file_id=surface.upload()["file_id"])

    assert code(reply) == (402, "insufficient_credits")
    assert reply.json()["error"]["details"] == {
        "required": quote["quoted_total"],
        "available": {"currency": "usd", "amount": "0.005"},
    }
    assert count(surface, batches) == 0
    assert credits_of(surface) == (5000, 0, 0)
    with surface.services.database.reading() as conn:
        assert conn.execute(select(quotes.c.accepted_batch_id)).scalar_one() is None


def test_a_purchase_reserves_exactly_the_quoted_total(surface):
    before = credits_of(surface)

    batch = surface.buy()

    quoted_micro = int(batch["quoted_total"]["amount"].replace(".", "").ljust(7, "0"))
    assert credits_of(surface) == (before[0] - quoted_micro, quoted_micro, 0)


def test_a_replay_answers_with_the_batch_as_it_is_now_and_buys_nothing(surface):
    key = "replayed-key"
    body = {
        "quote_id": surface.quote()["quote_id"],
        "input_file_id": surface.upload()["file_id"],
        "webhook": {"url": "https://example.com/a", "secret": "whsec_first"},
    }
    first = surface.submit(key, **body)
    surface.settle(first.json()["id"], completed=2, failed=1, cost_units=1000)
    body["webhook"] = {"url": "https://example.com/b", "secret": "whsec_second"}

    again = surface.submit(key, **body)

    assert again.status_code == 202
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert (again.json()["state"], again.json()["counts"]["completed"]) == ("running", 2)
    assert count(surface, batches) == 1


def test_only_a_202_binds_a_key(surface):
    key = "not-bound-yet"
    refused = surface.submit(key, quote_id="none", input_file_id="none")
    body = {
        "quote_id": surface.quote()["quote_id"],
        "input_file_id": surface.upload()["file_id"],
    }

    bought = surface.submit(key, **body)
    reused = surface.submit(key, **{**body, "metadata": {"other": "body"}})

    assert code(refused) == (404, "quote_not_found")
    assert bought.status_code == 202
    assert code(reused) == (409, "idempotency_key_reused")
    assert reused.json()["error"]["details"] == {"batch_id": bought.json()["id"]}
    assert count(surface, idempotency_keys) == 1


def test_keys_are_bound_per_workspace(surface):
    surface.buy(key="the-same-key")
    with surface.client_for(surface.mint(workspace="other")) as other:
        reply = other.post(
            "/v1/batches",
            json={"quote_id": "none", "input_file_id": "f"},
            headers={"Idempotency-Key": "the-same-key"},
        )

    assert code(reply) == (404, "quote_not_found")


def test_replayed_inline_items_are_stored_once(surface):
    body = {"quote_id": surface.quote()["quote_id"], "items": [ITEM]}

    first, again = surface.submit("inline-key", **body), surface.submit("inline-key", **body)

    assert again.json()["id"] == first.json()["id"]
    assert len(surface.stored()) == 1


@pytest.mark.parametrize("key", ["one-key-for-all", None])
@pytest.mark.parametrize("is_inline", [True, False])
def test_of_many_creates_at_once_one_buys_and_the_others_get_its_batch(surface, key, is_inline):
    source = {"items": [ITEM]} if is_inline else {"input_file_id": surface.upload()["file_id"]}
    body = {"quote_id": surface.quote()["quote_id"], **source}
    replies = []
    barrier = threading.Barrier(8)

    def create():
        barrier.wait()
        replies.append(surface.submit(key, **body))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    bought = [reply for reply in replies if reply.status_code == 202]
    if key is None:
        assert len(bought) == 1
        lost = [reply for reply in replies if reply is not bought[0]]
        assert {code(reply) for reply in lost} == {(409, "quote_lock_already_accepted")}
        told = {reply.json()["error"]["details"]["batch_id"] for reply in lost}
        assert told == {bought[0].json()["id"]}
    else:
        assert len(bought) == 8
        assert len({reply.json()["id"] for reply in bought}) == 1
        assert sum("Idempotent-Replayed" in reply.headers for reply in bought) == 7
    assert (count(surface, batches), len(surface.stored())) == (1, 1)
    assert credits_of(surface)[1] > 0


def test_the_submitted_event_stands_with_the_batch_and_the_secret_is_encrypted(surface):
    secret = "whsec_a_secret_that_nobody_may_read"

    batch = surface.buy(webhook={"url": "https://example.com/hook", "secret": secret})

    with surface.services.database.reading() as conn:
        event = conn.execute(select(events)).one()
        row = conn.execute(select(batches)).one()
    body = json.loads(event.body)
    assert (body["id"], body["type"]) == (event.id, "batch.submitted")
    assert body["data"] == {
        "batch_id": batch["id"],
        "state": "queued",
        "items_total": 3,
        "items_completed": 0,
        "items_failed": 0,
        "cost_usd": "0.00",
        "output_file_url": None,
    }
    assert secret.encode() not in row.webhook_secret_encrypted
    assert surface.services.vault.decrypt(row.webhook_secret_encrypted) == secret
    for path in surface.services.folder.root.glob("router.db*"):
        assert secret.encode() not in path.read_bytes()


def test_ranges_are_cut_when_the_manifest_is_shorter_than_the_quote(open_surface):
    lane = {"region": "global", "models": [{"name": "m", "input_usd_per_mtok": "1"}]}
    surface = open_surface(
        lanes=[{"provider": f"simulated-{name}", "capacity_items": 4, **lane} for name in "abc"],
        workflows=[],
    )
    quote = surface.quote(models=["m"], estimated_items=12)

    batch = surface.submit(
        quote_id=quote["quote_id"], input_file_id=surface.upload(items=6)["file_id"]
    ).json()

    assert [lane["item_count"] for lane in batch["lanes"]] == [4, 2, 0]
    with surface.services.database.reading() as conn:
        rows = conn.execute(select(batch_lanes).order_by(batch_lanes.c.position)).all()
    assert [row.first_item for row in rows] == [0, 4, 8]


def test_one_file_may_be_bought_twice_each_time_under_its_own_quote(surface):
    file = surface.upload()["file_id"]

    ids = {
        surface.submit(quote_id=surface.quote()["quote_id"], input_file_id=file).json()["id"]
        for _ in range(2)
    }

    assert len(ids) == 2


def test_a_full_disk_while_inline_items_are_stored_buys_nothing(surface, monkeypatch):
    from batchrouter.server.storage.objects import ObjectWriter, StoreFullError

    def full(_self):
        raise StoreFullError

    monkeypatch.setattr(ObjectWriter, "commit", full)
    quote = surface.quote()

    reply = surface.submit(quote_id=quote["quote_id"], items=[ITEM])

    assert code(reply) == (507, "storage_full")
    assert (surface.stored(), count(surface, batches), count(surface, files)) == ([], 0, 0)
