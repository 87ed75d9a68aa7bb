"""From the router's outbox to our inbox: the two ends of the signature meet."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from batchrouter.api.client import Client
from batchrouter.testing import running_router
from batchrouter.webhooks.inbox import Inbox
from batchrouter.webhooks.signing import mint_secret


@pytest.mark.parametrize(
    "running", [mint_secret(), "whsec_..."], ids=["both", "bare"], indirect=True
)
def test_a_batch_tells_of_its_end(running: Any, inbox: Inbox, tmp_path: Path) -> None:
    item = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Say hello"}}
    with running_router(tmp_path / "router") as router, Client(router.settings()) as client:
        quote = client.quote_model("gpt-4o-mini", estimated_items=1)
        batch = client.submit_batch(
            {"quote_id": quote.quote_id, "items": [item]},
            webhook={"url": f"http://127.0.0.1:{running.port}/hook", "secret": running.secret},
        )
        told: dict[str, Any] = {}
        cursor: str | None = None
        give_up_at = time.monotonic() + 60
        while "batch.completed" not in told and time.monotonic() < give_up_at:
            events, cursor = inbox.events_since(cursor)
            told |= {event.type: event for event in events}
            time.sleep(0.05)
        now = client.retrieve_batch(batch.id)

    event = told["batch.completed"]
    assert (event.batch_id, event.state) == (batch.id, "succeeded") == (now.id, now.state)
    assert running.secret not in json.dumps(event.to_dict())
