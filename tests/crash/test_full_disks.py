"""Disks that fill up under a router in mid-work and under a webhook's inbox: waited out.

The router is stopped at a kill point, its disk is filled, and it goes on into that. When there
is room again, the batch ends as if nothing had happened: sent once, paid once.
"""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from batchrouter import Client
from batchrouter.testing import RunningRouter, running_router
from crash.desk import CONFIG, wait_until
from crash.disk import Disk
from crash.scenario import ROWS
from crash.scene import CONFIG_FILE, Scene, Store
from crash.test_bad_deliveries import Receiver

FULL_FOR_S = 2.0

POINTS = (
    "create.before_commit",
    "work.before_plan_stored",
    "work.before_claim",
    "work.before_send",
    "work.before_result_stored",
    "work.before_chunk_settled",
    "work.before_merge",
    "work.before_artifact_stored",
    "work.before_settle",
    "work.after_settle",
)
SHORT = ("work.before_result_stored", "work.before_settle")


def is_stopped(pid: int) -> bool:
    return "State:\tT" in Path(f"/proc/{pid}/status").read_text()


def sent(router: RunningRouter) -> Counter[int]:
    """How often each item went to a lane, by the simulated providers' own logs."""
    times: Counter[int] = Counter()
    for log in (router.data_dir / "providers").glob("*.jsonl"):
        for line in log.read_text().splitlines():
            for first, last in json.loads(line)["items"]:
                times.update(range(first, last + 1))
    return times


@pytest.mark.parametrize(
    "point",
    [pytest.param(each, marks=() if each in SHORT else pytest.mark.drill) for each in POINTS],
)
def test_a_router_whose_disk_is_full_in_mid_work(point: str, disk: Disk, tmp_path: Path) -> None:
    disk.mount("16m")
    (disk.root / CONFIG_FILE).write_text(json.dumps(CONFIG))
    stop = {"BATCHROUTER_STOP_AT": point}
    with running_router(disk.root / "router", config=CONFIG, env=stop) as router:
        scene = Scene(tmp_path / "scene", router, Store("local", str(tmp_path)))
        attempt = scene.begin()
        wait_until(lambda: is_stopped(router.pid), within_s=60)
        disk.fill()
        os.kill(router.pid, signal.SIGCONT)
        time.sleep(FULL_FOR_S)
        if point != "work.after_settle":
            ended = [batch["completed_at"] for batch in scene.ledger().batches]
            assert not any(ended), "the disk was not full enough to be in the way"
        disk.free()

        end = attempt.end()

        wait_until(scene.has_settled)
        ledger = scene.ledger()
        assert len(ledger.batches) == 1
        ledger.check()
        assert end["rows"]["succeeded"] == ROWS
        assert sent(router) == dict.fromkeys(range(ROWS), 1)


def test_an_inbox_whose_disk_is_full(disk: Disk, tmp_path: Path) -> None:
    """The delivery is refused, made again, and kept once."""
    disk.mount("256k")
    receiver = Receiver(disk.root)
    try:
        disk.fill()
        with (
            running_router(tmp_path / "router", config=CONFIG) as router,
            Client(router.settings()) as client,
        ):
            quote = client.quote_model("quick", estimated_items=1)
            item = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Hi"}}
            hook = {"url": receiver.url, "secret": receiver.secret}
            order = {"quote_id": quote.quote_id, "items": [item]}
            batch_id = client.submit_batch(order, webhook=hook).id
            wait_until(lambda: client.retrieve_batch(batch_id).is_terminal)
            wait_until(lambda: "delivery" in router.log_path.read_text())
            assert receiver.events == []
            disk.free()
            wait_until(lambda: len(receiver.events) == 2, within_s=60)
    finally:
        told = receiver.stop()

    assert "full" in told
