"""The journal: exclusive, whole, readable by the next version, and never guessed at."""

import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.errors import JournalError, StorageError
from batchrouter.run.events import (
    ENTRY,
    Bought,
    Built,
    Claimed,
    Ended,
    Entry,
    GenerationOpened,
    Intended,
    Opened,
)
from batchrouter.run.folder import RunFolder
from batchrouter.run.journal import Journal, LostRaceError

OPENED = Opened(job_name="label", run_key="k", fingerprint={"key": "a"}, package_version="0")


def local(path: Path) -> RunFolder:
    return RunFolder(fsspec.filesystem("file"), str(path))


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    if request.param == "file":
        return local(tmp_path / "run")
    return RunFolder(fsspec.filesystem("memory"), f"/{tmp_path.name}/run")


def test_a_second_reader_knows_what_the_first_wrote(folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.append(OPENED)
    journal.append(Claimed(attempt="one"))

    state = Journal(RunFolder(folder.fs, folder.root)).load()

    assert (state.opened, state.claim, state.entry_count) == (OPENED, "one", 2)


def test_the_run_folder_is_its_accounts_own_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Journal(local(tmp_path / "runs" / "label" / "1")).append(OPENED)
    finally:
        os.umask(before)

    folder = tmp_path / "runs" / "label" / "1"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "journal")}
    assert modes == {0o700}


def test_of_two_writers_of_one_number_the_loser_reads_and_decides_again(folder: RunFolder) -> None:
    first, second = Journal(folder), Journal(RunFolder(folder.fs, folder.root))
    first.append(OPENED)

    with pytest.raises(LostRaceError):
        second.append(OPENED)

    assert second.state.opened == OPENED


def test_a_fact_that_still_holds_after_a_lost_race_is_written_under_the_next_number(
    folder: RunFolder,
) -> None:
    first, second = Journal(folder), Journal(RunFolder(folder.fs, folder.root))
    first.append(OPENED)

    second.append(Claimed(attempt="two"), still=lambda state: state.claim is None)

    assert first.load().claim == "two"


def test_twenty_writers_at_once_leave_twenty_numbers(tmp_path: Path) -> None:
    Journal(local(tmp_path)).append(OPENED)

    def write(token: int) -> None:
        Journal(local(tmp_path)).append(Claimed(attempt=str(token)), still=lambda _state: True)

    threads = [threading.Thread(target=write, args=(token,)) for token in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == [f"{number:06d}.json" for number in range(1, 22)]
    claims = {
        json.loads((tmp_path / "journal" / name).read_text())["fact"].get("attempt")
        for name in names
    }
    assert claims == {None, *map(str, range(20))}


def test_a_newer_version_is_refused_and_named(folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.append(OPENED)
    entry = {"version": 99, "number": 2, "at": "2026-11-22T00:00:00Z", "fact": {"type": "new"}}
    folder.create(folder.path("journal", "000002.json"), json.dumps(entry).encode())

    with pytest.raises(JournalError, match="version 99"):
        Journal(folder).load()


def test_a_hole_in_the_history_is_refused(folder: RunFolder) -> None:
    journal = Journal(folder)
    for fact in (OPENED, Claimed(attempt="a"), Claimed(attempt="b")):
        journal.append(fact)
    folder.fs.rm_file(folder.path("journal", "000002.json"))

    half = Journal(folder)
    half.load()

    with pytest.raises(JournalError, match="event 2 of 3 is missing"):
        half.check_whole()


def test_a_damaged_event_is_refused_with_its_number(folder: RunFolder) -> None:
    Journal(folder).append(OPENED)
    folder.fs.pipe_file(folder.path("journal", "000001.json"), b'{"version": 1, "num')

    with pytest.raises(JournalError, match=r"event 1 .* damaged"):
        Journal(folder).load()


def test_a_full_disk_leaves_no_event(tmp_path: Path) -> None:
    journal = Journal(local(tmp_path))
    journal.append(OPENED)
    full = RunFolder(_FullDisk(), str(tmp_path))
    late = Journal(full)
    late.load()

    with pytest.raises(StorageError, match="No space left"):
        late.append(Claimed(attempt="x"))

    assert Journal(local(tmp_path)).load().claim is None


class _Late(LocalFileSystem):
    """A network file system whose cache denies at first what another host has created."""

    protocol = "late"
    denied = 0

    def cat_file(self, path: str, **_options: object) -> bytes:
        if self.denied > 0:
            self.denied -= 1
            raise FileNotFoundError(path)
        return Path(path).read_bytes()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        with Path(path).open("xb" if mode == "create" else "wb") as file:
            file.write(value)


def test_an_event_of_another_host_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    store = _Late(skip_instance_cache=True)
    here, there = Journal(RunFolder(store, str(tmp_path))), Journal(local(tmp_path))
    there.append(OPENED)
    there.append(Claimed(attempt="theirs"))
    here.load()
    there.append(Claimed(attempt="theirs again"))
    store.denied = 2

    here.append(Claimed(attempt="ours"), still=lambda state: state.claim == "theirs again")

    assert Journal(local(tmp_path)).load().claim == "ours"


def test_an_event_that_stays_unreadable_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrouter.run.journal._LATE_S", (0.0,))
    (tmp_path / "journal").mkdir()
    store = _Late(skip_instance_cache=True)
    Journal(local(tmp_path)).append(OPENED)
    store.denied = 1000

    with pytest.raises(StorageError, match="cannot be read"):
        Journal(RunFolder(store, str(tmp_path))).append(OPENED, still=lambda _state: True)


class _Foreign(_Late):
    """A store whose library has errors of its own, as botocore and google.auth have."""

    protocol = "foreign"

    def cat_file(self, path: str, **_options: object) -> bytes:
        raise LookupError(f"no credentials for https://store/{path}?sig=secret")


def test_whatever_a_store_raises_is_a_storage_error_that_shows_no_url(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as raised:
        Journal(RunFolder(_Foreign(skip_instance_cache=True), str(tmp_path))).load()

    assert raised.value.retryable
    assert "secret" not in str(raised.value)


def test_an_event_about_an_unknown_batch_is_damage_and_no_key_error(folder: RunFolder) -> None:
    Journal(folder).append(OPENED)
    end = Ended(batch_id="batch_9", state="succeeded", completed=1, failed=0, settled_usd=None)
    entry = Entry(number=2, at=datetime.now(UTC), fact=end)
    folder.create(folder.path("journal", "000002.json"), ENTRY.dump_json(entry))

    with pytest.raises(JournalError, match="batch_9"):
        Journal(folder).load()


def test_a_folder_that_vanished_under_a_live_run_gets_no_history_without_a_beginning(
    folder: RunFolder,
) -> None:
    journal = Journal(folder)
    journal.append(OPENED)
    folder.fs.rm(folder.root, recursive=True)

    with pytest.raises(StorageError, match="has vanished"):
        journal.append(Claimed(attempt="x"))

    assert folder.names("journal") == []


def test_threads_that_share_a_journal_fold_each_event_once(tmp_path: Path) -> None:
    writer, shared = Journal(local(tmp_path)), Journal(local(tmp_path))
    writer.append(OPENED)
    for attempt in range(60):
        writer.append(Claimed(attempt=str(attempt)))

    threads = [threading.Thread(target=shared.load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (shared.state.entry_count, shared.state.claim) == (61, "59")


def test_a_second_build_of_a_generation_changes_nothing(folder: RunFolder) -> None:
    def built(count: int) -> Built:
        return Built(generation=0, manifest={"parts": [{"index": 0, "item_count": count}]})

    journal = Journal(folder)
    for fact in (OPENED, built(3), built(4)):
        journal.append(fact)

    assert journal.state.manifest == built(3).manifest


class _FullDisk(LocalFileSystem):
    """A store that takes nothing more; ENOSPC of a real disk needs a mount of its own."""

    protocol = "full"

    def pipe_file(self, *_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_new_generation_forgets_the_parts_and_keeps_the_money(folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.append(OPENED)
    journal.append(GenerationOpened(generation=1, fingerprint={"key": "b"}, reason="asked"))

    assert journal.state.generation == 1
    assert journal.state.fingerprint == {"key": "b"}
    assert journal.state.manifest is None


WRITABLE = st.text(st.characters(exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | WRITABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WRITABLE, inner, max_size=3),
    max_leaves=6,
)
MOMENTS = st.datetimes(timezones=st.just(UTC))
AMOUNTS = st.decimals(0, 10**12, places=12)
FACTS = st.one_of(
    st.builds(
        Opened,
        job_name=WRITABLE,
        run_key=WRITABLE,
        fingerprint=st.dictionaries(WRITABLE, WRITABLE),
        package_version=WRITABLE,
    ),
    st.builds(Claimed, attempt=WRITABLE),
    st.builds(
        Intended,
        generation=st.integers(0),
        part=st.integers(0),
        key=WRITABLE,
        body=st.dictionaries(WRITABLE, JSON_VALUES, max_size=4),
        quote_id=WRITABLE,
        quoted_usd=AMOUNTS,
        clock_offset_s=st.floats(-1e9, 1e9),
        account=WRITABLE,
    ),
    st.builds(
        Ended,
        batch_id=WRITABLE,
        state=WRITABLE,
        completed=st.integers(0),
        failed=st.integers(0),
        settled_usd=st.none() | AMOUNTS,
        error_message=st.none() | WRITABLE,
    ),
    st.builds(
        Bought,
        generation=st.integers(0),
        part=st.integers(0),
        batch_id=WRITABLE,
        quoted_usd=AMOUNTS,
        deadline_at=st.none() | MOMENTS,
        how=st.sampled_from(["accepted", "replayed", "adopted", "listed"]),
    ),
)
ENTRIES = st.builds(Entry, number=st.integers(1), at=MOMENTS, fact=FACTS)


@given(ENTRIES)
def test_any_event_reads_back_as_it_was_written(entry: Entry) -> None:
    assert ENTRY.validate_json(ENTRY.dump_json(entry, indent=1)) == entry


@given(ENTRIES, st.data())
def test_a_damaged_event_is_a_journal_error_or_still_the_same_kind(
    tmp_path_factory: pytest.TempPathFactory, entry: Entry, data: st.DataObject
) -> None:
    written = ENTRY.dump_json(entry.model_copy(update={"number": 1}))
    at = data.draw(st.integers(0, len(written)))
    cut = data.draw(st.integers(0, 8))
    damaged = written[:at] + data.draw(st.binary(max_size=8)) + written[at + cut :]
    folder = tmp_path_factory.mktemp("run") / "journal"
    folder.mkdir()
    (folder / "000001.json").write_bytes(damaged)

    try:
        state = Journal(local(folder.parent)).load()
    except JournalError as told:
        text = str(told)
    else:
        text = ""
        assert state.entry_count == 1

    assert not text or "000001" in text or "journal event 1 in" in text


def test_events_of_before_there_were_rounds_are_of_round_0(tmp_path: Path) -> None:
    folder = local(tmp_path)
    folder.ensure("journal")
    facts: list[dict[str, object]] = [
        OPENED.model_dump(),
        {"type": "built", "generation": 0, "manifest": {"parts": [{"index": 0, "item_count": 1}]}},
        {
            "type": "uploaded",
            "generation": 0,
            "part": 0,
            "file_id": "file_1",
            "sha256": "x",
            "input_tokens_estimate": None,
        },
    ]
    for number, fact in enumerate(facts, start=1):
        entry = {"version": 1, "number": number, "at": datetime.now(UTC).isoformat(), "fact": fact}
        (tmp_path / "journal" / f"{number:06d}.json").write_text(json.dumps(entry))

    state = Journal(folder).load()

    assert (state.round, state.parts[0].upload is not None) == (0, True)
