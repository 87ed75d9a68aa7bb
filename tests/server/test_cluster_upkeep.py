"""Routers on PostgreSQL and a real S3 API: swept clean, and replaced one by one under work."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from crash.desk import wait_until
from crash.scene import s3_store
from server.cluster import cluster
from server.stand_in import KEY, StandIn
from server.test_lanes_whole import artifact, assert_money_adds_up, buy, config, ended, lane

TEXTS = [f"item {nth}" for nth in range(8)]
A_SECOND_DAYS = 1 / 86_400
KEPT_FOR_SECONDS: dict[str, Any] = {
    "sweep_every_s": 1,
    "unused_upload_days": 30 * A_SECOND_DAYS,
    "manifest_after_end_days": A_SECOND_DAYS,
    "artifact_days": 30 * A_SECOND_DAYS,
    "quote_days": 30 * A_SECOND_DAYS,
    "event_days": A_SECOND_DAYS,
    "batch_days": 30 * A_SECOND_DAYS,
    "workflow_days": A_SECOND_DAYS,
}
EMPTIED = ("batches", "chunks", "files", "events", "quotes", "idempotency_keys", "lane_submissions")


def test_what_is_kept_no_longer_goes_from_the_database_and_from_the_bucket(
    tmp_path: Path, postgres_url: str, provider: StandIn
) -> None:
    served = {**config(lane("one", "openai-batch", provider)), "retention": KEPT_FOR_SECONDS}
    with s3_store(tmp_path) as store:
        bucket = store.filesystem()
        place = f"{store.url}/router"
        env = {**store.env, "BATCHROUTER_OBJECTS": place, "STAND_IN_KEY": KEY}
        with cluster(tmp_path / "cluster", postgres_url, served, env) as made:
            api = made.add("api")
            made.add("worker")
            with Client(base_url=api.base_url, api_key=made.api_key) as client:
                batch_id = buy(client, TEXTS)
                ended(client, batch_id)
                lines = artifact(client, batch_id)
            assert len(lines) == len(TEXTS)

            def left_over() -> dict[str, int]:
                rows = {name: made.rows(f"select count(*) from {name}")[0][0] for name in EMPTIED}
                rows["workflows"] = made.rows("select count(*) from dbos.workflow_status")[0][0]
                found = {**rows, "objects": len(bucket.find(place))}
                return {name: count for name, count in found.items() if count}

            wait_until(lambda: not left_over(), within_s=150)
            [(reserved, spent)] = made.rows("select reserved_micro, spent_micro from workspaces")
            assert reserved == 0
            assert spent > 0


@pytest.mark.drill
def test_every_process_is_replaced_under_work_and_nothing_is_bought_twice(
    tmp_path: Path, postgres_url: str, provider: StandIn
) -> None:
    provider.behaviour.polls = 60
    served = config(lane("one", "openai-batch", provider, capacity=10**6, poll_s=0.5))
    texts = [[f"batch {nth} {text}" for text in TEXTS] for nth in range(10)]
    with s3_store(tmp_path) as store:
        env = {**store.env, "BATCHROUTER_OBJECTS": f"{store.url}/router", "STAND_IN_KEY": KEY}
        with cluster(tmp_path / "cluster", postgres_url, served, env) as made:
            api = made.add("api")
            workers = [made.add("worker") for _ in range(2)]
            key = made.api_key
            with Client(base_url=api.base_url, api_key=key) as client:
                ids = [buy(client, each) for each in texts]
            wait_until(lambda: len(provider.batches) >= 3, within_s=90)

            new_api = made.add("api")
            for old in (api, *workers):
                if old is not api:
                    made.add("worker")
                old.send(signal.SIGTERM)
                old.wait_for_death(90)

            with Client(base_url=new_api.base_url, api_key=key) as client:
                for batch_id in ids:
                    batch = ended(client, batch_id, within_s=240)
                    lines = artifact(client, batch_id)
                    assert batch.state == "succeeded", made.log()
                    assert len(lines) == len(TEXTS)
                    assert_money_adds_up(batch, lines)
            # Those that began the work are gone, and each that ended handed on what it held.
            assert made.rows("select count(*) from chunks where state <> 'done'") == [(0,)]
    assert provider.bought == Counter(text for each in texts for text in each)
