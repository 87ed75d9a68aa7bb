"""What a step does in trouble: the batch ends, or it goes on, and is never left hanging."""

import sqlite3
import threading
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from batchrouter.server.batches import ledger
from batchrouter.server.lanes.lane import LaneItem
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.quoting.pricing import units_from_micro
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.tables import batch_lanes, batches, chunks, files
from batchrouter.server.work import patience
from batchrouter.server.work.chunk import ChunkWork
from batchrouter.server.work.patience import Patience
from batchrouter.server.work.shop import Pulse, Shop, Suspended

FULL = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))


class Failing:
    """Raises what it is given, one error a call, and then is done."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.is_done = False

    def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.is_done = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MAX_WAIT_S", 0.001)


def test_giving_up_is_tried_until_it_is_done() -> None:
    work = Failing(*(KeyError("x") for _ in range(patience.TRIES)))
    give_up = Failing(FULL, FULL, KeyError("y"), *(FULL for _ in range(10)))

    Patience(Pulse()).run(work, give_up)

    assert not work.is_done
    assert give_up.is_done


def test_waits_do_not_count_as_failures() -> None:
    waits = [FULL, PoolTimeoutError("QueuePool limit"), OSError("disk"), TimeoutError()] * 5
    work = Failing(*waits)
    give_up = Failing()

    Patience(Pulse()).run(work, give_up)

    assert work.is_done
    assert not give_up.is_done


def test_what_fails_because_the_router_stops_is_not_given_up() -> None:
    pulse = Pulse()
    give_up = Failing()

    def work() -> None:
        pulse.stop()
        raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(Suspended):
        Patience(pulse).run(work, give_up)

    assert not give_up.is_done


def test_a_chunk_that_was_sent_is_never_cut_or_capped_afterwards(surface: Any) -> None:
    services = surface.services
    batch = surface.buy(items=3)
    batch_id = batch["id"]
    lanes = LaneRegistry(
        services.config, services.folder.root / "providers", services.database, services.objects
    )
    ignore = threading.Event().set
    shop = Shop(
        services.database,
        services.objects,
        lanes,
        services.config,
        enqueue_chunk=lambda _conn, _batch_id, _number: ignore(),
        enqueue_finish=lambda _conn, _batch_id: ignore(),
    )
    with services.database.writing() as conn:
        file = conn.execute(files.select().where(files.c.id == batch["input_file_id"])).one()
        planned = conn.execute(batch_lanes.select().where(batch_lanes.c.batch_id == batch_id)).one()
        quoted = conn.execute(batches.select().where(batches.c.id == batch_id)).one()
        quoted_units = units_from_micro(quoted.quoted_total_micro)
        conn.execute(batches.update().values(state="running"))
        conn.execute(
            chunks.insert().values(
                batch_id=batch_id,
                number=0,
                lane_position=0,
                first_item=0,
                item_count=3,
                byte_start=0,
                byte_end=file.bytes,
                state="planned",
                updated_at=now_us(),
            )
        )
        assert ledger.claim_chunk(conn, batch_id, 0, quoted_units)
        # Another chunk cost more than it could: there is no room left under the quote.
        conn.execute(batches.update().values(settled_units=quoted_units))
    lane = lanes.find(planned.provider, planned.model)
    assert lane is not None
    lane.submit(
        f"{batch_id}/0/0/1", [LaneItem(nth, "/v1/chat/completions", b"{}", 64) for nth in range(3)]
    )

    ChunkWork(shop, batch_id, 0).run()
    shop.bench.close()

    with services.database.reading() as conn:
        [chunk] = conn.execute(chunks.select()).all()
    assert (chunk.state, chunk.completed, chunk.item_count) == ("done", 3, 3)
    [log] = (services.folder.root / "providers").glob("*.jsonl")
    assert len(log.read_text().splitlines()) == 1
