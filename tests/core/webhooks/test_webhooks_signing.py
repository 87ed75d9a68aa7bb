"""Signatures, against the Standard Webhooks library both ways, and against every trick."""

import base64
import hashlib
import hmac
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from batchrouter.errors import WebhookError
from batchrouter.webhooks.signing import MALFORMED, Event, mint_secret, sign, verify

NOW = 1_800_000_000
SECRET = mint_secret()
BODY = json.dumps({
    "id": "evt_1",
    "type": "batch.completed",
    "created": NOW - 5,
    "data": {"batch_id": "batch_1", "state": "succeeded", "items_total": 3, "cost_usd": "0.01"},
}).encode()


def signed(secret: str = SECRET, body: bytes = BODY, at: int = NOW) -> dict[str, str]:
    return sign(secret, body, event_id="evt_1", timestamp=at)


def body_with(**fields: Any) -> bytes:
    return json.dumps({**json.loads(BODY), **fields}).encode()


def test_a_delivery_is_read() -> None:
    event = verify(signed(), BODY, SECRET, now=NOW)

    assert event == Event(
        id="evt_1",
        type="batch.completed",
        created_at=datetime.fromtimestamp(NOW - 5, UTC),
        batch_id="batch_1",
        state="succeeded",
        data={"batch_id": "batch_1", "state": "succeeded", "items_total": 3, "cost_usd": "0.01"},
    )
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_the_bare_signature_is_the_contracts() -> None:
    expected = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()

    assert signed()["x-batchrouter-signature"] == expected


def test_the_standard_library_accepts_ours() -> None:
    now = int(datetime.now(UTC).timestamp())

    assert Webhook(SECRET).verify(BODY, signed(at=now))["id"] == "evt_1"
    with pytest.raises(WebhookVerificationError):
        Webhook(mint_secret()).verify(BODY, signed(at=now))


def test_we_accept_the_standard_librarys() -> None:
    at = datetime.fromtimestamp(NOW, UTC)
    headers = {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(NOW),
        "Webhook-Signature": Webhook(SECRET).sign("evt_1", at, BODY.decode()),
    }

    assert verify(headers, BODY, SECRET, now=NOW).id == "evt_1"
    with pytest.raises(WebhookError):
        verify(headers, BODY, mint_secret(), now=NOW)


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_...",  # the reference's own
        "hunter2hunter2",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_" + base64.b64encode(b"x" * 32).decode().rstrip("="),
        "whsec_" + base64.b64encode(b"x" * 32).decode() + "\n",
        "schlüssel-mit-umlaut",
    ],
)
def test_a_secret_without_a_standard_key_signs_bare_only(secret: str) -> None:
    headers = signed(secret)

    assert set(headers) == {"x-batchrouter-signature"}
    assert verify(headers, BODY, secret, now=NOW).id == "evt_1"


def test_a_minted_secret_carries_a_key_for_both() -> None:
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", SECRET)
    assert len(signed()) == 4
    assert mint_secret() != SECRET


def without(headers: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}


STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")


def test_no_signature_is_refused() -> None:
    with pytest.raises(WebhookError, match="no signature"):
        verify({"content-type": "application/json"}, BODY, SECRET, now=NOW)


@pytest.mark.parametrize("name", ["x-batchrouter-signature", "webhook-signature"])
@pytest.mark.parametrize(
    "forged", ["", "0" * 64, "v1,AAAA", "v1,!!", "v2,x", "ü", "v1," + "A" * 44]
)
def test_every_signature_that_came_must_verify(name: str, forged: str) -> None:
    with pytest.raises(WebhookError):
        verify({**signed(), name: forged}, BODY, SECRET, now=NOW)


def test_a_changed_body_is_refused_under_each_scheme() -> None:
    for headers in (without(signed(), *STANDARD), without(signed(), "x-batchrouter-signature")):
        assert verify(headers, BODY, SECRET, now=NOW).id == "evt_1"
        with pytest.raises(WebhookError, match="does not match"):
            verify(headers, BODY + b" ", SECRET, now=NOW)


@pytest.mark.parametrize("missing", STANDARD)
def test_half_a_standard_signature_is_refused(missing: str) -> None:
    with pytest.raises(WebhookError, match="missing"):
        verify(without(signed(), missing), BODY, SECRET, now=NOW)


@pytest.mark.parametrize("away_s", [-301, 301, 86_400])
def test_a_stale_timestamp_is_refused_although_the_bare_signature_holds(away_s: int) -> None:
    with pytest.raises(WebhookError, match="300 s away"):
        verify(signed(), BODY, SECRET, now=NOW + away_s)


def test_a_timestamp_is_signed() -> None:
    with pytest.raises(WebhookError, match="does not match"):
        verify({**signed(), "webhook-timestamp": str(NOW + 1)}, BODY, SECRET, now=NOW)


@pytest.mark.parametrize("timestamp", ["", "soon", "-1", "1e9", "1.5", "٣", "9" * 5000])
def test_a_timestamp_that_is_no_time_is_refused(timestamp: str) -> None:
    with pytest.raises(WebhookError):
        verify({**signed(), "webhook-timestamp": timestamp}, BODY, SECRET, now=NOW)


def test_a_stripped_signature_counts_only_while_the_event_is_young() -> None:
    bare = without(signed(), *STANDARD)

    assert verify(bare, BODY, SECRET, now=NOW + 24 * 3600).id == "evt_1"
    with pytest.raises(WebhookError, match="90000 s"):
        verify(bare, BODY, SECRET, now=NOW + 25 * 3600)


def test_an_event_from_the_future_would_outlive_the_inbox() -> None:
    body = body_with(created=NOW + 301)
    bare = without(signed(body=body), *STANDARD)

    with pytest.raises(WebhookError, match="outside"):
        verify(bare, body, SECRET, now=NOW)


def test_a_late_retry_with_a_fresh_timestamp_counts() -> None:
    late = NOW + 26 * 3600

    assert verify(signed(at=late), BODY, SECRET, now=late).id == "evt_1"


def test_a_header_that_comes_twice_is_refused() -> None:
    pairs = [*signed().items(), ("X-Batchrouter-Signature", "0" * 64)]

    with pytest.raises(WebhookError, match="twice"):
        verify(pairs, BODY, SECRET, now=NOW)


def test_one_of_several_signatures_is_enough_while_a_secret_changes() -> None:
    headers = signed()
    both = f"v1,AAAA v1a,zzz {headers['webhook-signature']}"

    assert verify({**headers, "webhook-signature": both}, BODY, SECRET, now=NOW).id == "evt_1"


def test_a_standard_signature_under_a_secret_that_cannot_make_one_is_refused() -> None:
    headers = {**signed("hunter2hunter2"), **without(signed(), "x-batchrouter-signature")}

    with pytest.raises(WebhookError, match="none that could make it"):
        verify(headers, BODY, "hunter2hunter2", now=NOW)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b'"x"',
        b'{"id": 1, "type": "t", "created": 1}',
        body_with(id="e" * 201),
        body_with(id="a\u0000b"),
        body_with(type=None),
        body_with(created=None),
        body_with(created="yesterday"),
        body_with(created=10**30),
        BODY.replace(b'"0.01"', b"NaN"),
        b"[" * 100_000,
    ],
)
def test_a_proven_sender_can_still_send_nonsense(body: bytes) -> None:
    headers = without(signed(body=body), "webhook-id")
    headers = without(headers, *STANDARD)

    with pytest.raises(WebhookError) as caught:
        verify(headers, body, SECRET, now=NOW)

    assert caught.value.code == MALFORMED


def test_unknown_types_and_missing_data_are_kept() -> None:
    body = json.dumps({"id": "evt_1", "type": "batch.sang", "created": NOW}).encode()

    event = verify(signed(body=body), body, SECRET, now=NOW)

    assert (event.type, event.batch_id, event.state, event.data) == ("batch.sang", "", "", {})


def test_no_float_touches_money() -> None:
    body = BODY.replace(b'"0.01"', b"0.100000000000000001")

    assert verify(signed(body=body), body, SECRET, now=NOW).data["cost_usd"] == (
        "0.100000000000000001"
    )


def test_the_secret_is_never_told() -> None:
    for headers in ({}, {"x-batchrouter-signature": "0"}, {**signed(), "webhook-signature": "v1,"}):
        with pytest.raises(WebhookError) as caught:
            verify(headers, BODY, SECRET, now=NOW)
        assert SECRET not in str(caught.value)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("evt_1") | ANY_JSON,
        "type": st.just("batch.completed") | ANY_JSON,
        "created": st.just(NOW) | ANY_JSON,
        "created_at": ANY_JSON,
        "data": ANY_JSON,
    },
)
BODIES = st.binary() | ENVELOPES.map(lambda fields: json.dumps(fields).encode())


@given(BODIES, st.sampled_from([SECRET, "hunter2hunter2", "ключ-и-пароль", "\x00" * 8]))
def test_any_body_of_a_proven_sender_is_an_event_or_is_malformed(body: bytes, secret: str) -> None:
    headers = sign(secret, body, event_id="evt_1", timestamp=NOW)

    try:
        event = verify(headers, body, secret, now=NOW)
    except WebhookError as told:
        # A bare signature also asks that the event is young.
        is_known = told.code == MALFORMED or "outside the" in str(told)
    else:
        is_known = Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event
    assert is_known


@given(
    st.dictionaries(
        st.sampled_from(["x-batchrouter-signature", *STANDARD, "X-Other"]),
        st.text() | st.just("0" * 64) | st.just("v1,AAAA") | st.just(str(NOW)),
    ),
    BODIES,
)
def test_no_headers_that_were_not_signed_prove_anything(
    headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(WebhookError):
        verify(headers, body, SECRET, now=NOW)


@given(BODIES, st.data())
def test_no_changed_byte_goes_through(body: bytes, data: st.DataObject) -> None:
    headers = sign(SECRET, body, event_id="evt_1", timestamp=NOW)
    at = data.draw(st.integers(0, len(body)))
    changed = (
        body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    )
    assume(changed != body)

    for kept in (headers, without(headers, *STANDARD), without(headers, "x-batchrouter-signature")):
        with pytest.raises(WebhookError, match="does not match"):
            verify(kept, changed, SECRET, now=NOW)
