"""Workers killed at random under many batches: all finish, bought once, credits exact."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchrouter import Client
from crash.scene import s3_store
from server.cluster import LEASE_S, Cluster, cluster
from server.stand_in import KEY, StandIn
from server.test_lanes_whole import artifact, assert_money_adds_up, buy, config, ended, lane

FINISH_WITHIN_S = 420.0


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        kills_for_s: Workers die for so long; at least one does.
        pause_s: The most time between two deaths.
    """

    apis: int
    workers: int
    batches: int
    items: int
    kills_for_s: float
    pause_s: float


def test_a_worker_dies_under_a_few_batches(tmp_path: Path, postgres_url: str) -> None:
    scale = Scale(apis=1, workers=2, batches=6, items=5, kills_for_s=0, pause_s=2)
    kill_at_random(tmp_path, postgres_url, scale)


@pytest.mark.drill
def test_workers_die_for_two_minutes_under_fifty_batches(tmp_path: Path, postgres_url: str) -> None:
    scale = Scale(apis=2, workers=3, batches=50, items=40, kills_for_s=120, pause_s=8)
    kill_at_random(tmp_path, postgres_url, scale)


def kill_at_random(tmp_path: Path, postgres_url: str, scale: Scale) -> None:
    with StandIn() as first, StandIn() as second, s3_store(tmp_path) as store:
        # Slow enough to be in the midst of something, whenever a worker dies.
        first.behaviour.polls = second.behaviour.polls = 15
        served = config(
            lane("one", "openai-batch", first, capacity=10**6, settle_s=3.0),
            lane("two", "mistral-batch", second, capacity=10**6, settle_s=3.0),
        )
        env = {**store.env, "BATCHROUTER_OBJECTS": f"{store.url}/router", "STAND_IN_KEY": KEY}
        with cluster(tmp_path / "cluster", postgres_url, served, env) as made:
            apis = [made.add("api") for _ in range(scale.apis)]
            keeper = _Keeper(made, scale)
            texts = {
                nth: [f"batch {nth} item {item}" for item in range(scale.items)]
                for nth in range(scale.batches)
            }
            with Client(base_url=apis[0].base_url, api_key=made.api_key) as one:
                clients = [one]
                if scale.apis > 1:
                    clients.append(Client(base_url=apis[1].base_url, api_key=made.api_key))
                with ThreadPoolExecutor(8) as pool:
                    ids = list(
                        pool.map(lambda nth: buy(clients[nth % len(clients)], texts[nth]), texts)
                    )
                killed = keeper.kill()
                for nth, batch_id in enumerate(ids):
                    client = clients[nth % len(clients)]
                    batch = ended(client, batch_id, within_s=FINISH_WITHIN_S)
                    lines = artifact(client, batch_id)
                    assert batch.state == "succeeded", made.log()
                    told = [line["output"]["choices"][0]["message"]["content"] for line in lines]
                    assert told == [f"echo: {text}" for text in texts[nth]]
                    assert_money_adds_up(batch, lines)
                for client in clients[1:]:
                    client.close()
            assert killed > 0
            bought = first.bought + second.bought
            assert bought == Counter(text for each in texts.values() for text in each)
            _check_books(made)
            # The state is nowhere but in the database and in the store.
            assert not list((tmp_path / "cluster").rglob("router.db*"))
            assert not list((tmp_path / "cluster").rglob("objects"))


class _Keeper:
    """Kills workers at random, and starts another one for each."""

    def __init__(self, made: Cluster, scale: Scale) -> None:
        self._made = made
        self._scale = scale
        self._random = random.Random(8)
        self._alive = [made.add("worker") for _ in range(scale.workers)]

    def kill(self) -> int:
        """Kill for as long as the scale says; returns how many died."""
        ends_at = time.monotonic() + self._scale.kills_for_s
        killed = 0
        starting: list[threading.Thread] = []
        while killed == 0 or time.monotonic() < ends_at:
            time.sleep(self._random.uniform(0.5, self._scale.pause_s))
            if not self._alive:
                continue
            victim = self._alive.pop(self._random.randrange(len(self._alive)))
            victim.kill()
            killed += 1
            starting.append(threading.Thread(target=self._replace))
            starting[-1].start()
        for thread in starting:
            thread.join()
        print(f"{killed} workers were killed; leases last {LEASE_S} s")
        return killed

    def _replace(self) -> None:
        self._alive.append(self._made.add("worker"))


def _check_books(made: Cluster) -> None:
    [(balance, reserved, spent)] = made.rows(
        "select balance_micro, reserved_micro, spent_micro from workspaces"
    )
    [(charged, released, quoted)] = made.rows(
        "select sum(charged_micro), sum(released_micro), sum(quoted_total_micro) from batches"
    )
    assert reserved == 0
    assert spent == charged
    assert charged + released == quoted
    assert balance + spent == 100 * 10**6
    assert made.rows("select count(*) from chunks where state <> 'done'") == [(0,)]
    assert made.rows("select count(*) from lane_submissions where state <> 'collected'") == [(0,)]
