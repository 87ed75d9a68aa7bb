"""The rules of a call, tested on the flow itself: no HTTP, no clock, no event loop."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from batchrouter.api import flows, requests
from batchrouter.api.calls import Caller
from batchrouter.api.steps import Flow, Reply, Send, Sleep, Step
from batchrouter.errors import (
    AuthError,
    BadRequestError,
    ConfigError,
    ConflictError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    TransportError,
)

CALLER = Caller("https://api.example", draw=lambda: 1.0)
GET = Send("GET", "/v1/batches/b", is_repeatable=True)
CREATE = Send("POST", "/v1/batches", fields={"quote_id": "q"})
LOST = TransportError("lost")


def quote_body(total: str) -> bytes:
    """A quote whose total stands there as it is, JSON number or string."""
    return (
        '{"quote_id": "qlock_1", "expires_at": "2026-11-22T08:10:00.000Z",'
        f' "pricing_estimate": {{"currency": "usd", "total": {total}}}}}'
    ).encode()


def play(flow: Flow[Any], *outcomes: Reply | Exception) -> tuple[Any, list[Step]]:
    """Drive a flow with these outcomes of its sends; return its result and all its steps."""
    steps: list[Step] = []
    left = list(outcomes)
    outcome: Any = None
    try:
        while True:
            step = flow.throw(outcome) if isinstance(outcome, Exception) else flow.send(outcome)
            steps.append(step)
            outcome = left.pop(0) if isinstance(step, Send) else None
    except StopIteration as done:
        assert not left, "the flow ended before it had seen everything"
        return done.value, steps


def refusal(status: int, code: str, message: str, **headers: str) -> Reply:
    body = f'{{"error": {{"code": "{code}", "message": "{message}", "details": {{"a": 1}}}}}}'
    return Reply(status, headers, body.encode())


def test_waits_as_long_as_the_server_asks_then_repeats() -> None:
    reply, steps = play(CALLER.call(GET), Reply(429, {"retry-after": "12"}), Reply(200))

    assert reply.status == 200
    assert steps == [GET, Sleep(12.0), GET]


def test_honours_a_retry_after_that_is_a_date_by_the_servers_own_clock() -> None:
    asked = {
        "retry-after": "Sun, 22 Nov 2026 08:00:07 GMT",
        "date": "Sun, 22 Nov 2026 08:00:00 GMT",
    }

    _, steps = play(CALLER.call(GET), Reply(503, asked), Reply(200))

    assert steps[1] == Sleep(7.0)


def test_waits_double_and_are_drawn_from_zero() -> None:
    half = Caller("https://api.example", draw=lambda: 0.5)

    _, steps = play(half.call(GET), LOST, Reply(502), Reply(500), Reply(200))

    assert [s for s in steps if isinstance(s, Sleep)] == [Sleep(0.25), Sleep(0.5), Sleep(1.0)]


def test_attempts_are_bounded() -> None:
    with pytest.raises(TransportError):
        play(CALLER.call(GET), *[LOST] * 5)


def test_the_waits_are_bounded_in_total() -> None:
    impatient = Caller("https://api.example", max_retry_wait_s=60.0)

    with pytest.raises(RateLimitedError) as caught:
        play(impatient.call(GET), Reply(429, {"retry-after": "61"}))

    assert caught.value.retry_after_s == 61.0


@pytest.mark.parametrize("failure", [LOST, Reply(503), Reply(429)])
def test_a_create_without_a_key_is_sent_once(failure: Reply | Exception) -> None:
    with pytest.raises((TransportError, ServerError, RateLimitedError)):
        play(CALLER.call(CREATE), failure)


def test_a_create_under_a_key_is_sent_again_with_the_same_key_and_body() -> None:
    done = Reply(202, {"idempotent-replayed": "true"}, b'{"id": "batch_1", "state": "queued"}')

    batch, steps = play(
        flows.submit_batch(
            CALLER, {"quote_id": "q"}, webhook={"url": "u"}, idempotency_key="run-7/part-0"
        ),
        LOST,
        done,
    )

    first, _, second = steps
    assert first == second
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert first.encode() == b'{"quote_id":"q","webhook":{"url":"u"}}'
    assert first.request_id == second.request_id
    assert batch.replayed


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 501, 507])
def test_what_a_repeat_cannot_cure_is_not_repeated(status: int) -> None:
    with pytest.raises(Exception, match=str(status)):
        play(CALLER.call(GET), Reply(status))


def test_an_error_carries_what_the_server_told() -> None:
    reply = refusal(409, "quote_lock_expired", "too late", **{"x-request-id": "req_9"})

    with pytest.raises(ConflictError) as caught:
        play(CALLER.call(GET), reply)

    error = caught.value
    assert (error.code, error.details, error.request_id) == (
        "quote_lock_expired",
        {"a": 1},
        "req_9",
    )
    assert "api.example refused GET /v1/batches/b: too late" in str(error)


def test_an_error_names_our_request_id_when_the_server_told_none() -> None:
    with pytest.raises(AuthError, match=f"API key.*request {GET.request_id}"):
        play(CALLER.call(GET), Reply(401, body=b"<html>"))


def test_a_redirect_is_refused_and_names_the_host() -> None:
    with pytest.raises(ProtocolError, match=r"redirects .* to evil\.example"):
        play(CALLER.call(GET), Reply(307, {"location": "https://evil.example/v1"}))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1', b'{"id": NaN}', b"\xff"])
def test_a_reply_that_makes_no_sense_concludes_nothing(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        play(flows.retrieve_batch(CALLER, "b"), Reply(200, body=body))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "number", ["1E+99999999", "0E+99999999", "1E+9999999999999999999", "1E-99999999", "9" * 5000]
)
def test_a_number_of_any_size_is_refused_at_once(number: str) -> None:
    with pytest.raises(ProtocolError, match="is not JSON"):
        Reply(200, {}, b'{"id": "batch_1", "total": %s}' % number.encode()).json()


def test_no_float_touches_money() -> None:
    quote, _ = play(
        flows.quote_model(CALLER, {}), Reply(200, body=quote_body("12345678901.000000000001"))
    )

    assert quote.pricing_estimate.total == Decimal("12345678901.000000000001")


def test_a_quote_knows_the_servers_clock() -> None:
    reply = Reply(200, {"date": "Sun, 22 Nov 2026 08:00:00 GMT"}, quote_body('"1"'))

    quote, _ = play(flows.quote_model(CALLER, {}), reply)

    assert (quote.expires_at - quote.server_now).total_seconds() == 600


class TestOptionalFields:
    ANSWER = Reply(200, body=quote_body('"1"'))

    def ask(self, fields: Mapping[str, Any], *outcomes: Reply) -> tuple[Any, list[Step]]:
        return play(flows.quote_model(CALLER, fields), *outcomes)

    @pytest.mark.parametrize(
        "message",
        [
            "sla_tier: unknown field",
            "body.sla_tier: Extra inputs are not permitted",
            "Unrecognized request argument supplied: sla_tier",
            "invalid: unexpected property sla_tier",
        ],
    )
    def test_one_that_the_server_does_not_know_is_left_out(self, message: str) -> None:
        fields = {"models": ["m"], "sla_tier": "flex", "max_price": {"amount": "1"}}

        quote, steps = self.ask(fields, refusal(400, "invalid_request", message), self.ANSWER)

        assert isinstance(steps[1], Send)
        assert steps[1].fields == {"models": ["m"], "max_price": {"amount": "1"}}
        assert quote.dropped_fields == ("sla_tier",)

    def test_several_are_left_out_one_after_the_other(self) -> None:
        quote, _ = self.ask(
            {"models": ["m"], "sla_tier": "flex", "allow_split": True},
            refusal(400, "invalid_request", "sla_tier: unknown field"),
            refusal(400, "invalid_request", "allow_split: unknown field"),
            self.ANSWER,
        )

        assert quote.dropped_fields == ("sla_tier", "allow_split")

    @pytest.mark.parametrize(
        "message",
        [
            "sla_tier: must be standard or flex",  # a wrong value is the caller's to correct
            "privacy_tier: unknown field",  # decides who sees the data
            "models: unknown model",
            "unexpected field: privacy_tier, sla_tier",
        ],
    )
    def test_nothing_else_is_dropped(self, message: str) -> None:
        fields = {"models": ["m"], "privacy_tier": "zdr", "sla_tier": "x"}

        with pytest.raises(BadRequestError):
            self.ask(fields, refusal(400, "invalid_request", message))

    def test_a_list_filter_too(self) -> None:
        query = requests.list_query(
            limit=5, after=None, state=("running", "queued"), updated_after=None, view="summary"
        )

        page, steps = play(
            flows.list_batches(CALLER, query),
            refusal(400, "invalid_request", "state: unknown query parameter"),
            Reply(200, body=b'{"data": []}'),
        )

        assert isinstance(steps[1], Send)
        assert steps[1].query == (("limit", "5"), ("view", "summary"))
        assert page.dropped_fields == ("state",)


def test_a_workflow_quote_sends_the_references_own_body_and_what_differs_from_its_defaults() -> (
    None
):
    fields = requests.quote_fields(
        {"workflow": "w@v3"},
        estimated_items=12_000,
        max_price=None,
        allowed_regions=("eu",),
        routing_mode="cheapest",
        privacy_tier="standard",
    )

    _, steps = play(flows.quote_workflow(CALLER, fields), TestOptionalFields.ANSWER)

    assert isinstance(steps[0], Send)
    assert steps[0].fields == {
        "workflow": "w@v3",
        "estimated_items": 12_000,
        "allowed_regions": ["eu"],
    }


@pytest.mark.parametrize("key", ["short", "x" * 129, "with space", "umläut-key"])
def test_a_key_that_would_not_be_honoured_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(ConfigError, match="8 to 128"):
        play(flows.submit_batch(CALLER, {}, webhook=None, idempotency_key=key))


def test_an_id_cannot_change_the_path() -> None:
    assert requests.batch_path("../x?y#z") == "/v1/batches/..%2Fx%3Fy%23z"
    for not_an_id in ("", ".", ".."):
        with pytest.raises(ConfigError):
            requests.batch_path(not_an_id)


def test_the_servers_clock_is_asked_without_the_key() -> None:
    now, steps = play(
        flows.server_time(CALLER), Reply(200, {"date": "Sun, 22 Nov 2026 08:00:00 GMT"})
    )

    assert now.isoformat() == "2026-11-22T08:00:00+00:00"
    assert isinstance(steps[0], Send)
    assert not steps[0].with_key
