"""What `doctor` finds out about the router: that it answers, its clock, and what the key may.

The scopes are tried with requests that cannot buy anything: the router checks the key and its
scope before it finds that the model, the quote or the batch does not exist (contract section 5
has the order).
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from batchrouter.cli.finding import Finding, Level, failure
from batchrouter.errors import APIError, AuthError, BatchrouterError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from batchrouter.api.client import Client
    from batchrouter.api.settings import Settings

_SKEW_WARN_S: Final = 5.0
_SKEW_FAIL_S: Final = 120.0
"""A quote lives for 600 s; webhook signatures are good for 300 s (contract sections 3 and 7)."""
_NO_SUCH: Final = "0" * 32
_NEEDED_FOR: Final = {
    "read": "to wait for a batch and land it",
    "quote": "to ask for a price",
    "submit": "to upload and buy",
    "cancel": "to cancel, also where a run stops at its budget",
}
_INVALID = "invalid_request"


def examine_router(settings: "Settings") -> Iterator[Finding]:
    """Ask the router, once and briefly."""
    from batchrouter.api.client import Client  # noqa: PLC0415 - loads httpx

    # One short try each: a doctor does not wait for a dead router to come back.
    impatient = settings.replace(max_attempts=1, timeout_s=min(settings.timeout_s, 10.0))
    try:
        client = Client(impatient)
    except ConfigError as error:
        advice = "For the embedded router: export BATCHROUTER_API_KEY=$(cat DIR/api_key)"
        yield failure("key", error, advice)
        return
    with client:
        try:
            yield from _clock(client)
        except BatchrouterError as error:
            yield failure("router", error, _if_not_reached(settings))
            return
        yield from _scopes(client)
        yield from _webhook_as_the_router_sees_it(client)


def _if_not_reached(settings: "Settings") -> str:
    if "base_url" not in settings.model_fields_set:
        return (
            "BATCHROUTER_BASE_URL is not set, so the hosted API was asked. For the embedded "
            "router:\nbatchrouter serve --data DIR, and BATCHROUTER_BASE_URL=http://127.0.0.1:8765"
        )
    return "Is the router running, and BATCHROUTER_BASE_URL right? batchrouter serve --data DIR"


def _clock(client: "Client") -> Iterator[Finding]:
    asked_at = datetime.now(UTC)
    server_at = client.server_time()
    heard_at = datetime.now(UTC)
    took_ms = (heard_at - asked_at).total_seconds() * 1000
    yield Finding("ok", "router", f"{client.settings.base_url} answers in {took_ms:.0f} ms")
    # The `Date` header has whole seconds, so up to one second of skew is no skew.
    middle = asked_at + (heard_at - asked_at) / 2
    skew_s = max(0.0, abs((server_at - middle).total_seconds()) - 1.0)
    if skew_s < _SKEW_WARN_S:
        yield Finding("ok", "clock", "agrees with the router's")
        return
    level: Level = "fail" if skew_s >= _SKEW_FAIL_S else "warn"
    yield Finding(
        level,
        "clock",
        f"{skew_s:.0f} s away from the router's",
        "Set this machine's clock (NTP): webhook signatures and quotes live by it.",
    )


def _scopes(client: "Client") -> Iterator[Finding]:
    tries: dict[str, Callable[[], object]] = {
        "read": lambda: client.list_batches(limit=1),
        "quote": lambda: client.quote_model([f"doctor-{_NO_SUCH}"], estimated_items=1),
        "submit": lambda: client.submit_batch(_a_purchase_of_nothing()),
        "cancel": lambda: client.cancel_batch(f"batch_{_NO_SUCH}"),
    }
    lacking: list[str] = []
    for scope, ask in tries.items():
        try:
            ask()
        except NotFoundError:
            continue
        except AuthError as error:
            if error.code == "unauthorized":
                yield failure("key", error, "The router does not know this key, or it is revoked.")
                return
            lacking.append(scope)
        except APIError as error:
            if scope == "read":
                yield failure("key", error)
                return
        except BatchrouterError as error:
            yield failure("key", error)
            return
    if not lacking:
        yield Finding("ok", "key", "valid for read, quote, submit and cancel")
        return
    told = "; ".join(f"{scope} is needed {_NEEDED_FOR[scope]}" for scope in lacking)
    yield Finding(
        "warn" if lacking == ["cancel"] else "fail",
        "key",
        f"valid, but lacks the scope {', '.join(lacking)}: {told}",
        "Ask for a key with these scopes. Embedded router: batchrouter keys create --data DIR",
        5,
    )


def _a_purchase_of_nothing() -> dict[str, str]:
    return {"quote_id": f"qlock_{_NO_SUCH}", "input_file_id": f"file_{_NO_SUCH}"}


def _webhook_as_the_router_sees_it(client: "Client") -> Iterator[Finding]:
    url, secret = client.settings.webhook_url, client.settings.webhook_secret
    if url is None or secret is None:
        return
    webhook = {"url": url, "secret": secret.get_secret_value()}
    try:
        client.submit_batch(_a_purchase_of_nothing(), webhook=webhook)
    except NotFoundError:
        yield Finding("ok", "webhook url", "the router would deliver there")
    except APIError as error:
        if error.code == _INVALID and "webhook" in str(error):
            yield failure(
                "webhook url",
                error,
                "The router takes HTTPS on 443 or 8443 at a public address; beside a router on "
                "loopback also http://127.0.0.1.",
            )
    except BatchrouterError as error:
        yield failure("webhook url", error)
