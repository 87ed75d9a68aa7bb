"""What a look for ended batches finds, on a real router: our runs', once they ended."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchrouter import Client, Job, Run
from batchrouter.errors import ConfigError
from batchrouter.run import Look, Tidings, ended, look_for_ended
from batchrouter.testing import RunningRouter, running_router
from batchrouter.webhooks.inbox import open_inbox
from batchrouter.webhooks.signing import Event


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def client(router: RunningRouter, tmp_path: Path) -> Iterator[Client]:
    with Client(router.settings(runs_url=str(tmp_path / "runs"))) as opened:
        yield opened


def buy(client: Client, tmp_path: Path, run_key: str) -> str:
    rows = pa.table({"id": [1, 2], "text": ["card", run_key]})
    fields: dict[str, Any] = {
        "name": "label",
        "source": rows,
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "1.00",
        "sink": str(tmp_path / "labelled"),
    }
    [batch_id] = Run.open(Job.model_validate(fields), run_key=run_key, client=client).submit()
    return batch_id


def wait_for_end(client: Client, *batch_ids: str) -> None:
    give_up_at = time.monotonic() + 60
    while not all(client.retrieve_batch(each).is_terminal for each in batch_ids):
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def keys(look: Look) -> list[str]:
    return sorted(each.run_key for each in look.ended)


def test_a_look_names_the_runs_whose_batches_ended_and_asks_once(
    client: Client, tmp_path: Path
) -> None:
    ids = [buy(client, tmp_path, f"day-{day}") for day in range(3)]
    wait_for_end(client, *ids)

    look = look_for_ended(client)

    assert keys(look) == ["day-0", "day-1", "day-2"]
    assert {each.batch_id for each in look.ended} == set(ids)
    assert {each.state for each in look.ended} == {"succeeded"}
    assert (look.request_count, look.is_whole) == (1, True)


def test_the_runs_of_another_namespace_are_not_ours(
    client: Client, router: RunningRouter, tmp_path: Path
) -> None:
    wait_for_end(client, buy(client, tmp_path, "mine"))

    with Client(router.settings(runs_url=str(tmp_path / "elsewhere"))) as other:
        assert keys(look_for_ended(other)) == []


def test_pages_that_one_look_may_not_read_are_read_by_the_next(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "_PAGE", 2)
    wait_for_end(client, *(buy(client, tmp_path, f"k{each}") for each in range(5)))

    first = look_for_ended(client, most=2)
    found, look = keys(first), first
    for _ in range(5):
        look = look_for_ended(client, look.cursor, most=2)
        found += keys(look)
        if look.is_whole:
            break

    assert not first.is_whole
    assert look.is_whole
    assert sorted(set(found)) == ["k0", "k1", "k2", "k3", "k4"]


def test_no_page_is_begun_when_the_time_is_over(client: Client, tmp_path: Path) -> None:
    wait_for_end(client, buy(client, tmp_path, "late"))

    look = look_for_ended(client, time_limit_s=-1)

    assert (keys(look), look.request_count) == ([], 0)
    assert keys(look_for_ended(client, look.cursor)) == ["late"]


def test_an_event_is_followed_by_its_batch_alone(client: Client, tmp_path: Path) -> None:
    inbox = open_inbox(f"sqlite:///{tmp_path}/inbox.db")
    before = look_for_ended(client, inbox=inbox)
    batch_id = buy(client, tmp_path, "told")
    wait_for_end(client, batch_id)

    quiet = look_for_ended(client, before.cursor, inbox=inbox)
    inbox.put(Event("evt_1", "batch.completed", datetime.now(UTC), batch_id, "succeeded", {}))
    told = look_for_ended(client, quiet.cursor, inbox=inbox)
    inbox.close()

    assert (keys(quiet), quiet.request_count) == ([], 0), "with an inbox it polls rarely"
    assert keys(told) == ["told"]
    assert told.request_count == 1


def test_an_event_that_the_api_does_not_confirm_is_asked_for_again(
    client: Client, tmp_path: Path
) -> None:
    inbox = open_inbox(f"sqlite:///{tmp_path}/inbox.db")
    inbox.put(Event("evt_1", "batch.completed", datetime.now(UTC), "batch_none", "succeeded", {}))

    look = look_for_ended(client, inbox=inbox)
    again = look_for_ended(client, look.cursor, inbox=inbox)
    inbox.close()

    assert "batch_none" in again.cursor
    assert again.request_count == 2, "the hint, and the list because of it"


@pytest.mark.parametrize("cursor", ["", "{}", "[]", '{"since": 1, "polled_at": 0}', "batch_1"])
def test_a_foreign_cursor_is_refused(client: Client, cursor: str) -> None:
    with pytest.raises(ConfigError, match="is no cursor of a look"):
        look_for_ended(client, cursor)


def test_tidings_tell_of_each_batch_once_over_restarts(client: Client, tmp_path: Path) -> None:
    wait_for_end(client, buy(client, tmp_path, "before the watcher"))
    first = Tidings(client, "nightly")
    assert first.look() == []
    ids = [buy(client, tmp_path, f"day-{day}") for day in range(2)]
    wait_for_end(client, *ids)

    told, untold = first.look()
    first.told(told)
    after_a_crash = Tidings(client, "nightly").look()
    again = Tidings(client, "nightly")
    for each in again.look():
        again.told(each)

    assert {told.batch_id, untold.batch_id} == set(ids)
    assert after_a_crash == [untold]
    assert Tidings(client, "nightly").look() == []
    assert Tidings(client, "another").look() == []


def test_a_damaged_record_of_what_was_told_is_named(client: Client) -> None:
    Tidings(client, "nightly").look()
    [kept] = Path(client.settings.runs_url, "_watchers").iterdir()
    kept.write_text("{")

    with pytest.raises(ConfigError, match="damaged; remove it"):
        Tidings(client, "nightly")
