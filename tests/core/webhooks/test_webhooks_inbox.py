"""One inbox, three kinds of storage: order, duplicates, several processes, forgetting."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.errors import ConfigError, StorageError
from batchrouter.webhooks.inbox import Inbox, open_inbox
from batchrouter.webhooks.signing import Event


def event(name: str) -> Event:
    return Event(
        id=name,
        type="batch.completed",
        created_at=datetime.now(UTC).replace(microsecond=0),
        batch_id=f"batch_of_{name}",
        state="succeeded",
        data={"cost_usd": "0.010000000001", "ü": [1, None]},
    )


@pytest.fixture(params=["sqlite", "folder", "memory", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return fresh_schema(request.getfixturevalue("postgres_url"))
    return {
        "sqlite": f"sqlite:///{tmp_path}/inbox.db",
        "folder": f"{tmp_path}/inbox",
        "memory": f"memory://{uuid4().hex}",
    }[request.param]


def fresh_schema(postgres_url: str) -> str:
    """A schema of its own."""
    database = postgres_url.replace("postgresql://", "postgresql+psycopg://", 1)
    schema = f"inbox_{uuid4().hex}"
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.schema.CreateSchema(schema))
    engine.dispose()
    mark = "&" if "?" in database else "?"
    return f"{database}{mark}options=-csearch_path%3D{schema}"


@pytest.fixture
def inbox(url: str) -> Iterator[Inbox]:
    opened = open_inbox(url)
    yield opened
    opened.close()


def test_events_come_in_order_each_after_the_cursor(inbox: Inbox) -> None:
    nothing, start = inbox.events_since(None)
    for name in "cab":
        assert inbox.put(event(name))
    first, after_first = inbox.events_since(start)
    assert inbox.put(event("d"))
    second, after_second = inbox.events_since(after_first)
    third, _ = inbox.events_since(after_second)

    assert nothing == []
    assert [e.id for e in first] == ["c", "a", "b"]
    assert [e.id for e in second] == ["d"]
    assert third == []
    assert first[0].data == event("c").data


def test_two_readers_do_not_take_from_each_other(inbox: Inbox, url: str) -> None:
    inbox.put(event("a"))

    mine, _ = inbox.events_since(None)
    yours, _ = inbox.events_since(None)

    assert mine == yours != []


def test_a_known_id_is_put_once(inbox: Inbox, url: str) -> None:
    first = event("a")
    other = open_inbox(url)

    assert inbox.put(first)
    assert not inbox.put(first)
    assert not other.put(first)
    assert len(other.events_since(None)[0]) == 1
    other.close()


def test_it_is_there_for_the_next_process(url: str) -> None:
    for name in ("a", "b"):
        opened = open_inbox(url)
        opened.put(event(name))
        opened.close()

    opened = open_inbox(url)
    assert [e.id for e in opened.events_since(None)[0]] == ["a", "b"]
    opened.close()


def fill(url: str, worker: int, barrier: threading.Barrier) -> None:
    barrier.wait()
    inbox = open_inbox(url)
    for number in range(10):
        inbox.put(event(f"own-{worker}-{number}"))
        inbox.put(event(f"shared-{number}"))
    inbox.close()


@pytest.mark.parametrize("url", ["sqlite", "folder", "postgres"], indirect=True)
def test_two_processes_at_once_lose_nothing(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=fill, args=(url, n, barrier)) for n in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait()
    seen: list[str] = []
    cursor: str | None = None
    inbox = open_inbox(url)
    while any(worker.is_alive() for worker in workers):
        events, cursor = inbox.events_since(cursor)
        seen += [e.id for e in events]
        time.sleep(0.02)
    events, cursor = inbox.events_since(cursor)
    seen += [e.id for e in events]

    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(seen) == sorted(
        [f"own-{w}-{n}" for w in range(2) for n in range(10)] + [f"shared-{n}" for n in range(10)]
    )
    inbox.close()


def test_pruning_keeps_what_a_sender_could_still_send_again(inbox: Inbox) -> None:
    inbox.put(event("a"))

    with pytest.raises(ConfigError, match="26 hours"):
        inbox.prune(timedelta(hours=25))
    assert inbox.prune(timedelta(hours=26)) == 0

    assert not inbox.put(event("a"))


class TestAges:
    """Pruning by age, with the age written into the store and not into a clock."""

    def test_of_a_database(self, tmp_path: Path) -> None:
        import sqlite3

        inbox = open_inbox(f"sqlite:///{tmp_path}/inbox.db")
        for name in ("old", "new"):
            inbox.put(event(name))
        with sqlite3.connect(f"{tmp_path}/inbox.db") as connection:
            connection.execute(
                "update batchrouter_inbox set received_at = received_at - 8*86400"
                " where event_id = 'old'"
            )
        connection.close()
        _, cursor = inbox.events_since(None)

        assert inbox.prune() == 1
        assert [e.id for e in inbox.events_since(None)[0]] == ["new"]
        inbox.put(event("newer"))
        assert [e.id for e in inbox.events_since(cursor)[0]] == ["newer"]
        inbox.close()

    def test_of_a_folder(self, tmp_path: Path) -> None:
        inbox = open_inbox(str(tmp_path))
        for name in ("old", "new"):
            inbox.put(event(name))
        old = min((tmp_path / "events").iterdir())
        received_us = int(old.name.partition("-")[0]) - 8 * 86_400_000_000
        old.rename(old.with_name(f"{received_us:016d}-{old.name.partition('-')[2]}"))
        (tmp_path / "known" / "20200101").mkdir()
        (tmp_path / "known" / "20200101" / "abc").touch()

        assert inbox.prune() == 1
        assert [e.id for e in inbox.events_since(None)[0]] == ["new"]
        assert not (tmp_path / "known" / "20200101").exists()
        assert not inbox.put(event("new"))


def test_a_file_that_is_still_being_written_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    inbox = open_inbox(str(tmp_path))
    inbox.put(event("a"))
    (path,) = (tmp_path / "events").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:20])

    early, cursor = inbox.events_since(None)
    path.write_bytes(whole)
    late, _ = inbox.events_since(cursor)

    assert early == []
    assert [e.id for e in late] == ["a"]


def test_a_receiver_whose_clock_is_behind_is_not_overlooked(tmp_path: Path) -> None:
    inbox = open_inbox(str(tmp_path))
    inbox.put(event("a"))
    _, cursor = inbox.events_since(None)
    inbox.put(event("b"))
    path = max((tmp_path / "events").iterdir())
    behind_us = int(path.name.partition("-")[0]) - 30_000_000
    path.rename(path.with_name(f"{behind_us:016d}-{path.name.partition('-')[2]}"))

    events, _ = inbox.events_since(cursor)

    assert [e.id for e in events] == ["b"]


def test_what_cannot_be_reached_says_so_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in (
        f"sqlite:///{tmp_path}/absent/inbox.db",
        f"{tmp_path}/file/inbox",
        "postgresql+psycopg://ann:hunter2@127.0.0.1:1/inbox",
    ):
        with pytest.raises(StorageError, match="cannot be opened") as caught:
            open_inbox(url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.retryable


@pytest.mark.parametrize(
    "url", ["oracle+nonsense://ann:hunter2@db/x", "nonsense://hunter2@bucket/inbox"]
)
def test_an_unknown_kind_of_storage_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="inbox_url") as caught:
        open_inbox(url)

    assert "hunter2" not in str(caught.value)


def test_a_damaged_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "inbox.db").write_bytes(b"not a database" * 1000)

    with pytest.raises(StorageError, match="not a database"):
        open_inbox(f"sqlite:///{tmp_path}/inbox.db")


def test_a_cursor_of_another_inbox_is_refused(inbox: Inbox) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        inbox.events_since("made-up")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
EVENTS = st.builds(
    Event,
    id=st.text(min_size=1, max_size=200).filter(str.isprintable),
    type=st.text(),
    created_at=st.datetimes(timezones=st.just(UTC)),
    batch_id=st.text(),
    state=st.text(),
    data=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
)


@pytest.mark.parametrize("kind", ["sqlite:///{}/inbox.db", "{}/inbox"])
@settings(max_examples=30, deadline=None)
@given(events=st.lists(EVENTS, max_size=5, unique_by=lambda event: event.id))
def test_any_event_comes_out_once_as_it_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, kind: str, events: list[Event]
) -> None:
    opened = open_inbox(kind.format(tmp_path_factory.mktemp("inbox")))
    try:
        put = [one for one in [*events, *events] if opened.put(one)]
        found, _ = opened.events_since(None)
    finally:
        opened.close()

    assert found == put == events
