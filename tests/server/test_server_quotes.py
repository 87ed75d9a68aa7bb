"""Quotes over HTTP: eligibility, order, splits, money, and what is refused."""

import json
from decimal import Decimal

import pytest

from batchrouter.server.quoting.pricing import fee_units
from batchrouter.server.storage.tables import quotes


def lane(provider, region="global", *, rate="1.00", capacity=1000, **more):
    return {
        "provider": f"simulated-{provider}",
        "region": region,
        "capacity_items": capacity,
        "models": [
            {
                "name": "m",
                "input_usd_per_mtok": rate,
                "output_usd_per_mtok": rate,
                "tasks": ["responses"],
            }
        ],
        **more,
    }


def ask(surface, status=200, **body):
    reply = surface.client.post(
        "/v1/quotes/model", json={"model": "m", "estimated_items": 10, **body}
    )
    assert reply.status_code == status, reply.text
    return reply.json()


def open_with(open_surface, *lanes, **more):
    return open_surface(lanes=list(lanes), workflows=[], **more)


def rejected(answer):
    lanes = (
        answer["quote_lanes"]
        if "quote_lanes" in answer
        else answer["error"]["details"]["rejected_lanes"]
    )
    return {lane["provider"]: lane["rejection_code"] for lane in lanes if not lane["selected"]}


def test_the_references_model_quote_is_answered_as_the_contract_says(surface):
    reply = surface.client.post(
        "/v1/quotes/model",
        json={
            "models": ["gpt-4o-mini", "claude-haiku-4"],
            "task": "responses",
            "estimated_items": 50000,
            "routing_mode": "cheapest",
            "privacy_tier": "standard",
            "allowed_regions": ["global"],
        },
    )

    quote = reply.json()
    assert reply.status_code == 200
    assert quote["quote_id"].startswith("qlock_")
    assert len(quote["quote_id"]) == 38
    assert (quote["kind"], quote["state"], quote["item_count"]) == ("model", "active", 50000)
    assert quote["assumptions"] == {
        "input_tokens_per_item": 420,
        "output_tokens_per_item": 64,
        "max_output_tokens": 1024,
        "source": "defaults",
    }
    # 50,000 items of (420 * 0.075 + 64 * 0.30) / 10^6 = 2.535; 5.90 % of it is 0.149565.
    assert quote["pricing_estimate"] == {
        "currency": "usd",
        "provider_subtotal": "2.535",
        "batchrouter_fee": "0.149565",
        "total": "2.684565",
    }
    assert quote["quoted_total"] == {"currency": "usd", "amount": "2.684565"}
    chosen = [item for item in quote["quote_lanes"] if item["selected"]]
    assert [(item["provider"], item["item_count"]) for item in chosen] == [
        ("simulated-openai", 50000)
    ]
    assert chosen[0]["quote_lane_id"].startswith("qlane_")
    assert all(item["reason"] for item in quote["quote_lanes"])
    assert quote["routing_explanation"].keys() == {
        "summary",
        "selected",
        "rejected",
        "fallback_order",
    }


def test_the_references_workflow_quote_is_answered_with_the_workflows_fee(surface):
    body = {"workflow": "classify-support-tickets@v3", "estimated_items": 12000}

    quote = surface.client.post("/v1/quotes/workflow", json=body).json()

    assert quote["kind"] == "workflow"
    assert quote["workflow"] == {"slug": "classify-support-tickets", "version": 3}
    price = {
        name: Decimal(value)
        for name, value in quote["pricing_estimate"].items()
        if name != "currency"
    }
    assert price["batchrouter_fee"] == price["provider_subtotal"] * Decimal("0.118")
    assert price["total"] == price["provider_subtotal"] + price["batchrouter_fee"]


def test_a_workflow_without_version_is_the_newest_active_one(surface):
    quote = surface.client.post(
        "/v1/quotes/workflow", json={"workflow": "classify-support-tickets", "estimated_items": 1}
    ).json()

    assert quote["workflow"]["version"] == 3


def test_a_quote_lives_for_ten_minutes(surface):
    from datetime import datetime, timedelta

    quote = surface.quote()

    lifetime = datetime.fromisoformat(quote["expires_at"]) - datetime.fromisoformat(
        quote["created_at"]
    )
    assert lifetime == timedelta(minutes=10)


def test_the_same_question_gets_the_same_lanes_and_price(surface):
    first, second = surface.quote(), surface.quote()

    assert first["pricing_estimate"] == second["pricing_estimate"]
    assert first["routing_explanation"] == second["routing_explanation"]


def test_ties_go_to_the_provider_that_comes_first_by_name(open_surface):
    surface = open_with(open_surface, lane("b"), lane("a"), lane("c", rate="0.99", paused=True))

    answer = ask(surface)

    assert answer["quote_lanes"][0]["provider"] == "simulated-a"
    assert rejected(answer) == {"simulated-b": "not_cheapest", "simulated-c": "provider_unhealthy"}
    assert answer["routing_explanation"]["fallback_order"] == ["m on simulated-b (global)"]


def test_a_split_takes_the_cheapest_lanes_first_in_contiguous_ranges(open_surface):
    surface = open_with(
        open_surface,
        lane("dear", rate="3.00", capacity=5),
        lane("mid", rate="2.00", capacity=6),
        lane("cheap", rate="1.00", capacity=4),
    )

    answer = ask(surface, estimated_items=12)

    chosen = [item for item in answer["quote_lanes"] if item["selected"]]
    assert [(item["provider"], item["item_count"]) for item in chosen] == [
        ("simulated-cheap", 4),
        ("simulated-mid", 6),
        ("simulated-dear", 2),
    ]
    total = sum(Decimal(item["price"]["total"]) for item in chosen)
    assert Decimal(answer["pricing_estimate"]["total"]) == total
    with surface.services.database.reading() as conn:
        plan = conn.execute(quotes.select()).one().plan
    assert [one["first_item"] for one in json.loads(plan)["lanes"]] == [0, 4, 10]


def test_a_dearer_lane_with_room_for_all_comes_before_a_split(open_surface):
    surface = open_with(
        open_surface, lane("big", rate="2.00", capacity=100), lane("small", capacity=5)
    )

    answer = ask(surface)

    assert answer["quote_lanes"][0]["provider"] == "simulated-big"
    assert rejected(answer) == {"simulated-small": "capacity_exhausted"}


@pytest.mark.parametrize(("allow_split", "allocated"), [(True, 9), (False, 5)])
def test_too_little_capacity_is_a_503_that_says_how_much_there_is(
    open_surface, allow_split, allocated
):
    surface = open_with(open_surface, lane("a", capacity=5), lane("b", capacity=4))

    error = ask(surface, 503, allow_split=allow_split)["error"]

    assert error["code"] == "provider_capacity_unavailable"
    assert error["details"]["requested"] == 10
    assert error["details"]["allocated"] == allocated
    assert error["details"]["limits"] == [
        {"provider": "simulated-a", "model": "m", "capacity_items": 5},
        {"provider": "simulated-b", "model": "m", "capacity_items": 4},
    ]


@pytest.mark.parametrize(
    ("unfit", "asked", "code"),
    [
        ({"region": "us"}, {"allowed_regions": ["eu"]}, "region_not_allowed"),
        ({}, {"privacy_tier": "zdr"}, "privacy_tier_unsupported"),
        ({"sla_tiers": ["flex"]}, {}, "sla_unattainable"),
        ({"estimated_completion_s": 90_000}, {}, "sla_unattainable"),
        ({"items_per_second": 0.0001}, {}, "sla_unattainable"),
        ({"paused": True}, {}, "provider_unhealthy"),
        ({}, {"task": "vision"}, "model_incompatible"),
        ({}, {"max_price": {"currency": "usd", "amount": "0.000001"}}, "price_above_max"),
    ],
)
def test_no_eligible_lane_names_every_lane_with_its_code(open_surface, unfit, asked, code):
    surface = open_with(open_surface, {**lane("a"), **unfit})

    error = ask(surface, 400, **asked)["error"]

    assert error["code"] == "no_eligible_lane"
    assert rejected({"error": error}) == {"simulated-a": code}
    with surface.services.database.reading() as conn:
        assert conn.execute(quotes.select()).all() == []


def test_global_admits_every_region_and_a_name_only_its_own(open_surface):
    surface = open_with(open_surface, lane("us", region="us"), lane("eu", region="eu", rate="2.00"))

    assert ask(surface)["quote_lanes"][0]["provider"] == "simulated-us"
    assert ask(surface, allowed_regions=["eu"])["quote_lanes"][0]["provider"] == "simulated-eu"


def test_max_price_at_the_total_is_enough(open_surface):
    surface = open_with(open_surface, lane("a"))
    total = ask(surface)["pricing_estimate"]["total"]

    again = ask(surface, max_price={"currency": "usd", "amount": total})

    assert again["pricing_estimate"]["total"] == total


def test_quoted_total_is_the_sum_rounded_up_to_the_micro_dollar(open_surface):
    surface = open_with(open_surface, lane("a", rate="0.000001"))

    quote = ask(surface, estimated_items=1, estimated_input_tokens=1, estimated_output_tokens=0)

    assert quote["pricing_estimate"]["total"] == "0.000000000002"
    assert quote["quoted_total"]["amount"] == "0.000001"


def test_the_fee_is_rounded_up_per_lane_and_then_summed(open_surface):
    surface = open_with(
        open_surface, lane("a", rate="0.000001", capacity=1), lane("b", rate="0.000001", capacity=1)
    )

    quote = ask(surface, estimated_items=2, estimated_input_tokens=1, estimated_output_tokens=0)

    assert 2 * fee_units(1, 590) > fee_units(2, 590)
    assert quote["pricing_estimate"]["batchrouter_fee"] == "0.000000000002"


def test_given_token_figures_are_echoed_and_priced(surface):
    quote = surface.quote(estimated_input_tokens=10, estimated_output_tokens=5, max_output_tokens=7)

    assert quote["assumptions"] == {
        "input_tokens_per_item": 10,
        "output_tokens_per_item": 5,
        "max_output_tokens": 7,
        "source": "request",
    }
    assert (
        Decimal(quote["pricing_estimate"]["provider_subtotal"])
        == 100 * (10 * Decimal("0.075") + 5 * Decimal("0.30")) / 10**6
    )


def test_the_assumed_output_never_passes_a_given_cap(surface):
    quote = surface.quote(max_output_tokens=8)

    assert quote["assumptions"]["output_tokens_per_item"] == 8
    assert quote["assumptions"]["source"] == "defaults"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"estimated_items": 0}, "estimated_items"),
        ({"estimated_items": True}, "estimated_items"),
        ({"estimated_items": "5"}, "estimated_items"),
        ({"estimated_items": 1.5}, "estimated_items"),
        ({"routing_mode": "fastest"}, "routing_mode"),
        ({"privacy_tier": "secret"}, "privacy_tier"),
        ({"allowed_regions": []}, "allowed_regions"),
        ({"sla_tier": "express"}, "sla_tier"),
        ({"max_price": {"currency": "usd", "amount": 0.5}}, "max_price.amount"),
        ({"max_price": {"currency": "usd", "amount": {}}}, "max_price.amount"),
        ({"max_price": {"currency": "usd", "amount": [0, [1], 0]}}, "max_price.amount"),
        ({"max_price": {"currency": "eur", "amount": "1"}}, "max_price.currency"),
        ({"max_prise": "1"}, "max_prise"),
        ({"models": []}, "models"),
        ({"model": "gpt-4o-mini"}, "body"),
        ({"operation": "embeddings"}, "body"),
        ({"estimated_output_tokens": 9, "max_output_tokens": 8}, "body"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(surface, change, path):
    body = {"models": ["gpt-4o-mini"], "task": "responses", "estimated_items": 5, **change}

    reply = surface.client.post("/v1/quotes/model", json=body)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "invalid_request")
    assert error["message"].startswith(f"{path}: "), error


def test_a_wrong_routing_mode_lists_what_there_is(surface):
    reply = surface.client.post(
        "/v1/quotes/model",
        json={"model": "gpt-4o-mini", "estimated_items": 1, "routing_mode": "fast"},
    )

    assert "cheapest" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"model": NaN}',
        b'{"model":"a","model":"b"}',
        b"\xff",
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_two_parsers_could_read_differently_is_refused(surface, body):
    reply = surface.client.post("/v1/quotes/model", content=body)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")


def test_unknown_models_and_workflows_are_404_and_named(surface):
    model = surface.client.post(
        "/v1/quotes/model", json={"models": ["gpt-4o-mini", "gpt-0"], "estimated_items": 1}
    )
    workflow = surface.client.post(
        "/v1/quotes/workflow", json={"workflow": "nothing@v1", "estimated_items": 1}
    )

    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
    assert model.json()["error"]["details"] == {"models": ["gpt-0"]}
    assert (workflow.status_code, workflow.json()["error"]["code"]) == (404, "workflow_not_found")


def test_a_quote_beyond_what_the_router_locks_is_refused(open_surface):
    surface = open_with(open_surface, lane("a", capacity=10**6), limits={"quote_usd": "1.00"})

    error = ask(surface, 400, estimated_items=10**5)["error"]

    assert error["code"] == "invalid_request"
    assert error["message"].startswith("estimated_items: ")


def test_embeddings_cost_input_tokens_only(surface):
    quote = surface.client.post(
        "/v1/quotes/model",
        json={
            "model": "text-embedding-3-small",
            "operation": "embeddings",
            "estimated_items": 1000,
        },
    ).json()

    assert quote["assumptions"]["output_tokens_per_item"] == 0
    assert (
        Decimal(quote["pricing_estimate"]["provider_subtotal"])
        == 1000 * 420 * Decimal("0.01") / 10**6
    )
