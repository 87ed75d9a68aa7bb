"""The router on a real PostgreSQL, by configuration alone: tables, money, batches, refusals."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import select, text, update

from batchrouter import Client
from batchrouter.errors import ConfigError, NotFoundError
from batchrouter.server.config import load_config
from batchrouter.server.serve import migrate, mint_key
from batchrouter.server.storage.keys import KeyLimits
from batchrouter.server.storage.places import Places
from batchrouter.server.storage.postgres import connect
from batchrouter.server.storage.tables import workspaces
from crash.desk import wait_until
from server.cluster import Cluster, cluster, fresh_database
from server.test_lanes_whole import artifact, ended

#: More than 64 chunks, at 104 items a chunk with the output cap of `submit`.
HUGE_ITEMS = 80 * 104


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def routers(tmp_path: Path, postgres_url: str) -> Iterator[Cluster]:
    objects = {"BATCHROUTER_OBJECTS": str(tmp_path / "objects")}
    lanes = load_config().model_dump(mode="json", exclude_none=True)["lanes"]
    slow = {
        **lanes[0],
        "provider": "simulated-slow",
        "models": [{**lanes[0]["models"][0], "name": "slow"}],
        "options": {"latency_s": 3600},
    }
    config = {"lanes": [*lanes, slow]}
    with cluster(tmp_path / "cluster", postgres_url, config, objects) as made:
        yield made


def submit(client: Client, items: int = 30, model: str = "gpt-4o-mini", **fields: Any) -> str:
    lines = [
        {
            "customer_item_id": f"row-{nth}",
            "operation": "responses",
            "input": {"messages": [{"role": "user", "content": f"What about item {nth}?"}]},
        }
        for nth in range(items)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.upload_manifest(lambda: io.BytesIO(content), filename="items.jsonl")
    quote = client.quote_model(
        [model],
        estimated_items=items,
        estimated_input_tokens=60,
        estimated_output_tokens=64,
        max_output_tokens=64_000,
    )
    return client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id}).id


def test_a_batch_goes_through_one_process_that_does_it_all(routers: Cluster) -> None:
    router = routers.add("both")
    with Client(base_url=router.base_url, api_key=routers.api_key) as client:
        batch = ended(client, submit(client))
        lines = artifact(client, batch.id)

    assert batch.state == "succeeded", routers.log()
    assert [line["customer_item_id"] for line in lines] == [f"row-{nth}" for nth in range(30)]
    [(balance, reserved, spent, charged)] = routers.rows(
        "select balance_micro, reserved_micro, spent_micro,"
        " (select sum(charged_micro) from batches) from workspaces"
    )
    assert reserved == 0
    assert spent == charged > 0
    assert balance + spent == 1000 * 10**6
    # Nothing of the state is left in the folder.
    assert not list(router.data_dir.glob("router.db*"))
    assert not (router.data_dir / "objects").exists()


def test_a_nul_in_an_id_is_refused_by_its_name(routers: Cluster) -> None:
    router = routers.add("api")
    with httpx.Client(
        base_url=router.base_url, headers={"Authorization": f"Bearer {routers.api_key}"}
    ) as asking:
        answer = asking.get("/v1/batches/batch_%00")

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert "NUL" in error["message"]


def test_api_and_worker_are_two_processes(routers: Cluster) -> None:
    api = routers.add("api")
    with Client(base_url=api.base_url, api_key=routers.api_key) as client:
        batch_id = submit(client)
        time.sleep(1)
        assert client.retrieve_batch(batch_id).state == "queued"
        worker = routers.add("worker")
        assert ended(client, batch_id).state == "succeeded", routers.log()
        cancelled = submit(client, items=5)
        client.cancel_batch(cancelled)
        assert ended(client, cancelled).state in {"cancelled", "succeeded"}
    with (
        Client(base_url=worker.base_url, api_key=routers.api_key) as client,
        pytest.raises(NotFoundError),
    ):
        client.list_batches()


def test_writers_are_serial_and_lose_no_update(empty_database: str, tmp_path: Path) -> None:
    migrate(empty_database)
    mint_key(tmp_path, database=empty_database)
    opened = [connect(empty_database) for _ in range(4)]

    def add_slowly(database: Any) -> None:
        for _ in range(10):
            with database.writing() as conn:
                balance = conn.execute(select(workspaces.c.balance_micro)).scalar_one()
                time.sleep(0.002)
                conn.execute(update(workspaces).values(balance_micro=balance + 1))

    threads = [threading.Thread(target=add_slowly, args=(one,)) for one in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with opened[0].reading() as conn:
        balance = conn.execute(select(workspaces.c.balance_micro)).scalar_one()
    assert balance == 1000 * 10**6 + 40
    for database in opened:
        database.close()


def test_a_reading_transaction_sees_one_snapshot_and_writes_nothing(
    empty_database: str, tmp_path: Path
) -> None:
    migrate(empty_database)
    mint_key(tmp_path, database=empty_database)
    database = connect(empty_database)
    with database.reading() as conn:
        before = conn.execute(select(workspaces.c.balance_micro)).scalar_one()
        with database.writing() as writer:
            writer.execute(update(workspaces).values(balance_micro=7))
        assert conn.execute(select(workspaces.c.balance_micro)).scalar_one() == before
        with pytest.raises(Exception, match="read-only"):
            conn.execute(update(workspaces).values(balance_micro=8))
    database.close()


def test_serve_refuses_a_schema_that_is_not_its_own(empty_database: str, tmp_path: Path) -> None:
    places = Places.find(tmp_path, database=empty_database)
    with pytest.raises(ConfigError, match="no tables of a router yet: run `batchrouter migrate`"):
        places.open_database()

    assert "workers" in migrate(empty_database)
    assert migrate(empty_database) == []
    places.open_database().close()

    with psycopg.connect(empty_database) as conn:
        conn.execute("drop table facts")
    with pytest.raises(ConfigError, match=r"older than this router \(facts are missing\)"):
        places.open_database()
    assert migrate(empty_database) == ["facts"]

    with psycopg.connect(empty_database) as conn:
        conn.execute("update schema_version set version = 99")
    for open_it in (places.open_database, lambda: migrate(empty_database)):
        with pytest.raises(ConfigError, match="schema version 99"):
            open_it()


def test_another_secret_key_is_refused(routers: Cluster) -> None:
    routers.add("api")
    stranger = {"BATCHROUTER_SECRET_KEY_FILE": str(routers.root / "another_key")}
    with pytest.raises(Exception, match="secret_key is not the one of the other processes"):
        routers.add("worker", env=stranger)


def test_roles_need_a_shared_database(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "batchrouter.server", "--data", tmp_path, "--role", "worker"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 2
    assert "--role worker needs a database" in told.stderr


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2secret@host/name",
        "postgresql://user:hunter2secret@",
        "postgresql://user:hunter2secret@127.0.0.1:1/name?connect_timeout=2",
        "hunter2secret",
    ],
)
def test_no_error_tells_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(url)
    assert "hunter2secret" not in str(caught.value)
    assert "postgresql://" in str(caught.value)


def test_a_session_that_stops_while_it_writes_loses_its_turn(empty_database: str) -> None:
    migrate(empty_database)
    stopped, other = connect(empty_database), connect(empty_database)
    with stopped.engine.connect() as conn:
        conn.execute(text("SET idle_in_transaction_session_timeout = '1s'"))
        conn.commit()
        from batchrouter.server.storage.postgres import take_write_lock

        take_write_lock(conn)
        conn.execute(text("update schema_version set version = 5"))
        began = time.monotonic()
        with other.writing() as writing:
            version = writing.execute(text("select version from schema_version")).scalar_one()
        assert version == 1
        assert time.monotonic() - began < 60
        conn.invalidate()
    stopped.close()
    other.close()


def test_a_key_has_one_rate_limit_over_all_api_processes(routers: Cluster) -> None:
    apis = [routers.add("api"), routers.add("api")]
    limits = KeyLimits(requests_per_minute=4)
    key = mint_key(routers.root / "keys", database=routers.database, limits=limits)
    headers = {"Authorization": f"Bearer {key}"}

    replies = [
        httpx.get(f"{apis[nth % 2].base_url}/v1/batches", headers=headers, timeout=60)
        for nth in range(12)
    ]

    refused = [reply for reply in replies if reply.status_code == 429]
    # A slow machine refills some calls meanwhile.
    assert len(refused) >= 4
    assert [reply.status_code for reply in replies[:4]] == [200] * 4
    assert all(1 <= int(reply.headers["Retry-After"]) <= 15 for reply in refused)
    first = httpx.get(
        f"{apis[0].base_url}/v1/batches",
        headers={"Authorization": f"Bearer {routers.api_key}"},
        timeout=60,
    )
    assert first.status_code == 200


def test_a_workspace_with_a_huge_batch_does_not_starve_another(routers: Cluster) -> None:
    # Chunks that wait for their lane hold their places for longer than the test lasts.
    api = routers.add("api")
    routers.add("worker")
    other = mint_key(routers.root / "keys", workspace="other", database=routers.database)
    with (
        Client(base_url=api.base_url, api_key=routers.api_key) as huge,
        Client(base_url=api.base_url, api_key=other) as small,
    ):
        huge_id = submit(huge, items=HUGE_ITEMS, model="slow")
        wait_until(lambda: _sending(routers, huge_id) == 64, within_s=90)
        batch = ended(small, submit(small, items=5))
        assert batch.state == "succeeded", routers.log()
        assert _sending(routers, huge_id) == 64
        # In the workspace of the huge one a small one gets the next place that is free.
        [(waiting,)] = routers.rows(
            f"select count(*) from chunks where batch_id = '{huge_id}' and state = 'planned'"
        )
        assert waiting > 0


def _sending(routers: Cluster, batch_id: str) -> int:
    [(count,)] = routers.rows(
        f"select count(*) from chunks where batch_id = '{batch_id}' and state = 'sending'"
    )
    return count
