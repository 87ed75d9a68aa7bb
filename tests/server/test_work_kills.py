"""SIGKILL at every point of the work: the batch goes on, nothing is sent twice, money adds up."""

import io
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.errors import TransportError
from batchrouter.testing import RunningRouter, running_router

ITEMS = 1_300
#: With this cap a chunk has 104 items, so that the batch has 13 chunks.
MAX_OUTPUT_TOKENS = 64_000

IN_PLANNING = ("work.before_plan_stored", "work.after_plan_stored")
IN_CHUNKS = (
    "work.before_claim",
    "work.after_claim",
    "work.before_send",
    "work.after_send",
    "work.before_result_stored",
    "work.after_result_stored",
    "work.before_chunk_settled",
    "work.after_chunk_settled",
)
AT_THE_END = (
    "work.before_merge",
    "work.before_artifact_stored",
    "work.after_artifact_stored",
    "work.before_settle",
    "states.before_finish_commit",
    "work.after_settle",
    "work.after_results_deleted",
)
#: A side effect is done at each of them, and nobody has been told.
THE_WORST = (
    "work.after_plan_stored",
    "work.after_send",
    "work.after_result_stored",
    "work.after_artifact_stored",
    "states.before_finish_commit",
)
EVERY_POINT = (*IN_PLANNING, *IN_CHUNKS, *AT_THE_END)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RunningRouter]:
    with running_router(tmp_path / "router") as router:
        yield router


def submit(client: Client) -> str:
    lines = [
        {
            "customer_item_id": f"row-{nth}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": f"What about item {nth}?"}]},
        }
        for nth in range(ITEMS)
    ]
    manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="items.jsonl")
    quote = client.quote_model(
        ["gpt-4o-mini"],
        estimated_items=ITEMS,
        estimated_input_tokens=60,
        estimated_output_tokens=64,
        max_output_tokens=MAX_OUTPUT_TOKENS,
    )
    return client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id}).id


def ended(client: Client, batch_id: str, *, within_s: float = 60) -> Any:
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        batch = client.retrieve_batch(batch_id, include_billing_receipt=True)
        if batch.is_terminal:
            return batch
        time.sleep(0.05)
    raise AssertionError(f"still {batch.state} with {batch.counts} after {within_s} s")


def sent(router: RunningRouter, batch_id: str) -> Counter[int]:
    """How often each item was sent to any lane, by the simulated providers' own logs."""
    times: Counter[int] = Counter()
    for log in (router.data_dir / "providers").glob("*.jsonl"):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if entry["key"].startswith(batch_id):
                for first, last in entry["items"]:
                    times.update(range(first, last + 1))
    return times


def answers(client: Client, batch_id: str) -> list[dict[str, Any]]:
    """The artifact without what names the purchase and its moment."""
    held = io.BytesIO()
    client.download_artifact(batch_id, held)
    lines = [json.loads(line) for line in held.getvalue().splitlines()]
    for line in lines:
        del line["batch_item_id"], line["completed_at"]
    return lines


def tables(router: RunningRouter, query: str) -> list[Any]:
    with sqlite3.connect(router.data_dir / "router.db", timeout=30) as conn:
        rows = conn.execute(query).fetchall()
    conn.close()
    return rows


def assert_as_if_undisturbed(router: RunningRouter, batch_id: str) -> None:
    with Client(router.settings()) as client:
        batch = ended(client, batch_id)
        undisturbed = submit(client)
        ended(client, undisturbed)
        assert batch.state == "succeeded"
        assert batch.counts.completed == ITEMS
        assert sent(router, batch_id) == dict.fromkeys(range(ITEMS), 1)
        assert answers(client, batch_id) == answers(client, undisturbed)
    [(balance, reserved, spent)] = tables(
        router, "SELECT balance_micro, reserved_micro, spent_micro FROM workspaces"
    )
    charged = tables(router, "SELECT charged_micro FROM batches ORDER BY created_at")
    assert balance + reserved + spent == 1_000_000_000
    assert reserved == 0
    assert charged[0] == charged[1]
    assert spent == sum(one for (one,) in charged)


def start_to_die(router: RunningRouter, point: str) -> None:
    """Start it with a kill point, which it may reach before it answers its first request."""
    with suppress(TransportError):
        router.restart({"BATCHROUTER_KILL_AT": point})


def kill_in_turn(router: RunningRouter, points: Sequence[str]) -> str:
    """Let one batch's router die at each point, and start it a last time; returns the batch."""
    with Client(router.settings()) as client:
        router.restart({"BATCHROUTER_KILL_AT": points[0]})
        batch_id = submit(client)
    for following in points[1:]:
        assert router.wait_for_death() == -9
        start_to_die(router, following)
    assert router.wait_for_death() == -9
    router.start()
    return batch_id


def test_a_router_that_dies_at_the_worst_moments_in_turn(router: RunningRouter) -> None:
    batch_id = kill_in_turn(router, THE_WORST)

    assert_as_if_undisturbed(router, batch_id)


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_router_that_dies_at_every_point_in_turn(router: RunningRouter) -> None:
    batch_id = kill_in_turn(router, EVERY_POINT)

    assert_as_if_undisturbed(router, batch_id)


@pytest.mark.drill
@pytest.mark.parametrize("point", EVERY_POINT)
def test_a_kill_changes_nothing(router: RunningRouter, point: str) -> None:
    with Client(router.settings()) as client:
        router.restart({"BATCHROUTER_KILL_AT": point})
        batch_id = submit(client)
    assert router.wait_for_death() == -9

    router.start()

    assert_as_if_undisturbed(router, batch_id)


@pytest.mark.drill
@pytest.mark.parametrize("wait_s", [0.1, 0.2, 0.3, 0.5, 0.8])
def test_kills_at_any_moment_change_nothing(router: RunningRouter, wait_s: float) -> None:
    with Client(router.settings()) as client:
        batch_id = submit(client)

    for _ in range(3):
        time.sleep(wait_s)
        router.kill()
        router.start()

    assert_as_if_undisturbed(router, batch_id)


def test_a_graceful_stop_suspends_the_work(router: RunningRouter) -> None:
    with Client(router.settings()) as client:
        batch_id = submit(client)
    started = time.monotonic()

    router.stop()
    stopped_after_s = time.monotonic() - started
    router.start()

    assert stopped_after_s < 20, "it was killed"
    assert_as_if_undisturbed(router, batch_id)
