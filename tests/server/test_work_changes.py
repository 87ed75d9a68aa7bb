"""A router that comes back to open batches with other lanes, or with another configuration."""

import io
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import RunningRouter

ITEMS = 40
CHEAP = {"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"}
DEAR = {"input_usd_per_mtok": "0.30", "output_usd_per_mtok": "1.20"}
WORKFLOW = {
    "slug": "label",
    "version": 1,
    "fields": [{"name": "text"}],
    "user": "Label this: {text}",
    "output_schema": {
        "type": "object",
        "additionalProperties": False,
        "required": ["intent"],
        "properties": {"intent": {"type": "string", "enum": ["lost_card", "exchange_rate"]}},
    },
    "models": ["m"],
}


def lane(provider: str, price: Mapping[str, str], **options: Any) -> dict[str, Any]:
    return {
        "provider": f"simulated-{provider}",
        "region": "global",
        "capacity_items": 100_000,
        "models": [{"name": "m", **price}],
        "options": options,
    }


class Changing(RunningRouter):
    """A router whose configuration is changed between its lives."""

    def configure(self, lanes: Sequence[Mapping[str, Any]], *, workflows: Any = ()) -> None:
        config = {"lanes": list(lanes), "workflows": list(workflows)}
        self.config_path.write_text(json.dumps(config), encoding="utf-8")

    @property
    def config_path(self) -> Path:
        return self.data_dir / "router.json"

    def sent(self, batch_id: str) -> Counter[int]:
        times: Counter[int] = Counter()
        for log in (self.data_dir / "providers").glob("*.jsonl"):
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                if entry["key"].startswith(batch_id):
                    for first, last in entry["items"]:
                        times.update(range(first, last + 1))
        return times

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        with sqlite3.connect(self.data_dir / "router.db", timeout=30) as conn:
            rows = conn.execute(statement, parameters).fetchall()
        conn.close()
        return rows


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Changing]:
    options = ["--port", "0", "--config", str(tmp_path / "router.json")]
    router = Changing(tmp_path, options=options, log_path=tmp_path / "router.log")
    yield router
    router.stop()


def buy(router: Changing, *, workflow: bool = False, **quote: Any) -> str:
    text = "Somebody took my card, item {}"
    lines: list[dict[str, Any]] = [
        {"customer_item_id": f"row-{nth}", "input": {"text": text.format(nth)}}
        if workflow
        else {
            "customer_item_id": f"row-{nth}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": text.format(nth)}]},
        }
        for nth in range(ITEMS)
    ]
    manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with Client(router.settings()) as client:
        file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="items.jsonl")
        if workflow:
            locked = client.quote_workflow("label@v1", estimated_items=ITEMS, **quote)
        else:
            locked = client.quote_model(["m"], estimated_items=ITEMS, **quote)
        body = {"quote_id": locked.quote_id, "input_file_id": file.file_id}
        return client.submit_batch(body).id


def wait_until(is_so: Callable[[], bool], *, within_s: float = 20) -> None:
    give_up_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def ended(router: Changing, batch_id: str) -> Any:
    with Client(router.settings()) as client:
        wait_until(lambda: client.retrieve_batch(batch_id).is_terminal)
        return client.retrieve_batch(batch_id, include_billing_receipt=True)


def artifact(router: Changing, batch_id: str) -> list[dict[str, Any]]:
    held = io.BytesIO()
    with Client(router.settings()) as client:
        client.download_artifact(batch_id, held)
    return [json.loads(line) for line in held.getvalue().splitlines()]


@pytest.mark.parametrize("first_lane", ["recovered", "removed"])
def test_what_the_stand_in_has_taken_is_not_sent_to_the_first_lane_again(
    router: Changing, first_lane: str
) -> None:
    spare = lane("spare", DEAR, latency_s=3)
    router.configure([lane("first", CHEAP, is_down=True, retry_first_s=0.02), spare])
    router.start()
    batch_id = buy(router)
    wait_until(lambda: router.sent(batch_id).total() == ITEMS)

    router.kill()
    router.configure([spare] if first_lane == "removed" else [lane("first", CHEAP), spare])
    router.start()
    batch = ended(router, batch_id)

    assert batch.state == "succeeded"
    assert router.sent(batch_id) == dict.fromkeys(range(ITEMS), 1)
    assert {line["provider"] for line in artifact(router, batch_id)} == {"simulated-spare"}


def test_what_a_removed_lane_may_have_taken_is_told_as_possibly_repeated(
    router: Changing,
) -> None:
    spare = lane("spare", DEAR)
    router.configure([lane("first", CHEAP, latency_s=3600), spare])
    router.start()
    batch_id = buy(router)
    wait_until(lambda: router.sent(batch_id).total() == ITEMS)

    router.kill()
    router.configure([spare])
    router.start()
    batch = ended(router, batch_id)

    assert batch.state == "succeeded"
    assert batch.billing_receipt.possibly_repeated == ITEMS


def test_a_batch_without_any_lane_left_fails_and_is_free(router: Changing) -> None:
    router.configure([lane("first", CHEAP, latency_s=3600)])
    router.start()
    batch_id = buy(router)
    wait_until(lambda: router.sent(batch_id).total() == ITEMS)

    router.kill()
    other = {**lane("other", CHEAP), "models": [{"name": "other", **CHEAP}]}
    router.configure([other])
    router.start()
    batch = ended(router, batch_id)

    assert batch.state == "failed"
    assert batch.counts.failed == ITEMS
    assert batch.billing_receipt.credits.charged.amount == 0


def test_what_a_workflow_has_answered_outlives_its_removal(router: Changing) -> None:
    lanes = [lane("first", CHEAP)]
    router.configure(lanes, workflows=[WORKFLOW])
    router.start({"BATCHROUTER_KILL_AT": "work.before_merge"})
    batch_id = buy(router, workflow=True)
    assert router.wait_for_death() == -9

    router.configure(lanes)
    router.start()
    batch = ended(router, batch_id)

    assert batch.state == "succeeded"
    lines = artifact(router, batch_id)
    assert len(lines) == ITEMS
    assert {line["output"]["intent"] for line in lines} == {"lost_card"}


def test_a_workflows_items_keep_to_the_cap_of_the_quote(router: Changing) -> None:
    router.configure([lane("first", CHEAP)], workflows=[WORKFLOW])
    router.start()

    batch_id = buy(router, workflow=True, max_output_tokens=3)
    batch = ended(router, batch_id)

    assert batch.state == "succeeded"
    assert {line["usage"]["output_tokens"] for line in artifact(router, batch_id)} == {3}


def test_a_deadline_at_which_nothing_had_been_answered_is_expired(router: Changing) -> None:
    router.configure([lane("first", CHEAP, is_down=True, retry_first_s=60)])
    router.start()
    batch_id = buy(router)
    claimed = "SELECT 1 FROM chunks WHERE state = 'sending'"
    wait_until(lambda: router.execute(claimed) == [(1,)])

    router.execute("UPDATE batches SET deadline_at = created_at WHERE id = ?", batch_id)
    # An open chunk knows its deadline already: the next process reads it anew.
    router.restart()
    batch = ended(router, batch_id)

    assert batch.state == "expired"
    assert batch.counts.failed == ITEMS
    assert batch.billing_receipt.credits.charged.amount == 0
