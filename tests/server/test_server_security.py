"""What a router keeps and where: keys, modes, names, pickles; SECURITY.md lists the rules."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import os
import pickle
import pickletools
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from batchrouter import Job, Run
from batchrouter.errors import APIError
from batchrouter.server import serve
from batchrouter.server.batches.artifacts import UrlSigner
from batchrouter.server.delivery.outbox import DueEvent
from batchrouter.server.http.bodies import read_body
from batchrouter.server.storage.clock import now_us
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.tables import batches, events, files
from batchrouter.server.storage.vault import Vault
from batchrouter.testing import running_router
from crash.desk import CONFIG

POSTS = [
    "/v1/quotes/model",
    "/v1/quotes/workflow",
    "/v1/batches",
    "/v1/batches/input-manifests",
]


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder.parent)): stat.S_IMODE(path.stat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def run_a_batch(router: Any, root: Path, **changes: str) -> str:
    source = root / "rows.jsonl"
    source.write_text("".join(f'{{"id": {row}, "text": "card {row}"}}\n' for row in range(5)))
    job = Job.model_validate({
        "name": "label",
        "source": str(source),
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["quick"]},
        "budget": "5.00",
        "sink": str(root / "labelled"),
    })  # fmt: skip
    settings = router.settings(runs_url=str(root / "runs"), **changes)
    with Run.open(job, run_key="1", settings=settings) as run:
        return run.execute(timeout_s=60).batch_ids[0]


def values(database: Path) -> Iterator[tuple[str, Any]]:
    """Every value of every table, the durable workflows' own among them."""
    with contextlib.closing(sqlite3.connect(database)) as conn:
        named = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in named:
            for row in conn.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    yield table, value


def is_pickle(value: Any) -> bool:
    """Whether a value is a pickle, as bytes, in base64 or in hex."""
    if isinstance(value, str):
        candidates = [value.encode()]
        for decode in (base64.b64decode, bytes.fromhex):
            with contextlib.suppress(ValueError):
                candidates.append(decode(value))
    elif isinstance(value, bytes):
        candidates = [value]
    else:
        return False
    for candidate in candidates:
        # Every protocol that is still written begins so, and ends with a full stop.
        if candidate[:1] == b"\x80" and candidate[-1:] == b".":
            with contextlib.suppress(Exception):
                return bool(list(pickletools.genops(candidate)))
    return False


def test_the_search_for_pickles_finds_them() -> None:
    made = pickle.dumps({"args": ("batch_1",), "kwargs": {}})

    assert is_pickle(made)
    assert is_pickle(base64.b64encode(made).decode())
    assert not is_pickle('{"args": ["batch_1"]}')
    assert not is_pickle(7)


def test_no_pickle_stands_in_the_database_of_a_router_that_has_worked(tmp_path: Path) -> None:
    with running_router(tmp_path / "router", config=CONFIG) as router:
        batch_id = run_a_batch(router, tmp_path)

    found = list(values(tmp_path / "router" / "router.db"))
    inputs = [
        value for table, value in found if table == "workflow_input" and batch_id in str(value)
    ]
    assert any(isinstance(value, str) and value[:1] in "[{" for value in inputs), inputs
    assert [value for _, value in found if is_pickle(value)] == []


def test_a_key_is_kept_as_its_hash_only(surface: Any) -> None:
    key = surface.mint()
    surface.services.database.close()

    kept = written(surface.services.folder.root)
    assert key.encode() not in kept
    assert key.removeprefix("bk_live_").encode() not in kept
    assert hashlib.sha256(key.encode()).hexdigest().encode() in kept


def test_everything_that_a_router_writes_is_its_accounts_own(tmp_path: Path) -> None:
    with running_router(tmp_path / "router", config=CONFIG, env={}) as router:
        run_a_batch(router, tmp_path)
        found = modes(tmp_path / "router")

    assert len(found) > 10
    # `running_router` itself keeps what the process says.
    del found["router/router.log"]
    assert {name for name, mode in found.items() if mode & 0o077} == set()


def test_a_folder_is_private_from_its_first_key_on(tmp_path: Path, open_umask: None) -> None:
    serve.mint_key(tmp_path / "data")
    database = Database.open(tmp_path / "data" / "router.db")
    with database.writing() as conn:
        conn.execute(text("CREATE TABLE t (a)"))
        found = modes(tmp_path / "data")
    database.close()

    assert {"data/router.db", "data/router.db-wal", "data/router.db-shm"} <= set(found)
    assert {name for name, mode in found.items() if mode & 0o077} == set()


def test_the_store_and_the_key_file_are_private_whatever_the_umask(
    tmp_path: Path, open_umask: None
) -> None:
    Objects.local(tmp_path / "objects")
    Vault.open(tmp_path / "secret_key")
    serve._write_secret(tmp_path / "api_key", "bk_live_x")

    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secret_key").stat().st_mode) == 0o600


def test_a_databases_error_does_not_show_what_was_sent_to_it(surface: Any) -> None:
    with (
        pytest.raises(SQLAlchemyError) as caught,
        surface.services.database.writing() as conn,
    ):
        conn.execute(text("INSERT INTO nowhere VALUES (:secret)"), {"secret": "canary-7f2a"})

    assert "nowhere" in str(caught.value)
    assert "canary-7f2a" not in str(caught.value)


def test_an_event_does_not_show_its_secret() -> None:
    event = DueEvent("evt_1", b"{}", "https://example.com/hook", "whsec_canary-7f2a", 1)

    assert "canary" not in repr(event)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/cron.d/x", "x"),
        ("..\\..\\windows\\x.jsonl", "x.jsonl"),
        ("..", ".."),
        ("a/", "manifest.jsonl"),
        ("safe\u202ejsonl.exe", "safejsonl.exe"),
        ("x" * 1000, "x" * 255),
        ("<script>.jsonl", "<script>.jsonl"),
    ],
)
def test_a_file_name_is_for_display_and_leads_nowhere(
    surface: Any, make_manifest: Callable[..., bytes], tmp_path: Path, name: str, shown: str
) -> None:
    before = {path for path in tmp_path.rglob("*") if "objects" not in path.parts}

    file = surface.post_manifest(make_manifest(1), filename=name).json()

    assert file["filename"] == shown
    assert surface.stored() == [f"manifests/{file['file_id']}.jsonl"]
    assert {path for path in tmp_path.rglob("*") if "objects" not in path.parts} == before


def test_a_file_name_may_hold_no_control_characters(
    surface: Any, make_manifest: Callable[..., bytes]
) -> None:
    frame = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a\x1b[31m\x7fb"\r\n\r\n'

    reply = surface.client.post(
        "/v1/batches/input-manifests",
        content=frame + make_manifest(1) + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )

    # The parser of the form itself may refuse them; what is kept never holds one.
    with surface.services.database.reading() as conn:
        names = list(conn.execute(select(files.c.filename)).scalars())
    assert (reply.status_code, names) in [(400, []), (201, ["a[31mb"])]


TRAVERSALS = [
    "..%2f..%2fsecret_key",
    "%2e%2e/%2e%2e/secret_key",
    "..\\..\\secret_key",
    "batch_%00",
    "%2fetc%2fpasswd",
    "batch_1/../../healthz",
]


@pytest.mark.parametrize("where", ["/v1/batches/{}", "/v1/batches/{}/artifact-url"])
@pytest.mark.parametrize("id_", TRAVERSALS)
def test_an_id_that_is_a_path_is_an_id_that_nobody_has(surface: Any, where: str, id_: str) -> None:
    reply = surface.client.get(where.format(id_))

    assert reply.status_code in {401, 403, 404}
    assert "root:" not in reply.text


@pytest.mark.parametrize("id_", TRAVERSALS)
def test_a_signed_path_is_the_only_one_that_opens(surface: Any, id_: str) -> None:
    batch = surface.buy()
    surface.settle(batch["id"], completed=3, failed=0, cost_units=1_000_000_000)
    surface.finish(batch["id"], "succeeded")
    url = surface.client.get(f"/v1/batches/{batch['id']}/artifact-url").json()["url"]

    reply = surface.client.get(url.replace(batch["id"], id_))

    assert reply.status_code in {403, 404}
    assert surface.client.get(url).status_code == 200


def test_a_signature_covers_what_may_be_done_where_until_when_and_by_which_key() -> None:
    key = b"k" * 32
    signer = UrlSigner(key)

    query = signer.sign("/artifacts/b.jsonl", expires_s=2_000_000_000)

    covered = f"read\n/artifacts/b.jsonl\n2000000000\n{query['key']}"
    assert query["signature"] == hmac.new(key, covered.encode(), hashlib.sha256).hexdigest()
    assert key.hex() not in query["key"]


@pytest.mark.parametrize("field", ["quote_id", "input_file_id"])
def test_an_id_in_a_body_is_looked_up_and_never_opened(surface: Any, field: str) -> None:
    body = {"quote_id": surface.quote()["quote_id"], "input_file_id": surface.upload()["file_id"]}

    reply = surface.submit(**{**body, field: "../../secret_key"})

    assert reply.status_code == 404


@pytest.mark.parametrize("field", ["quote_id", "input_file_id"])
def test_what_another_workspace_has_cannot_be_bought_with(surface: Any, field: str) -> None:
    own = {"quote_id": surface.quote()["quote_id"], "input_file_id": surface.upload()["file_id"]}
    mine = surface.client
    surface.client = surface.client_for(surface.mint(workspace="other"))
    with surface.client:
        other = {
            "quote_id": surface.quote()["quote_id"],
            "input_file_id": surface.upload()["file_id"],
        }
    surface.client = mine

    reply = surface.submit(**{**own, field: other[field]})

    assert reply.status_code == 404
    kind = field.removeprefix("input_").removesuffix("_id")
    assert reply.json()["error"]["code"] == f"{kind}_not_found"
    assert surface.submit(**own).status_code == 202


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"])
@pytest.mark.parametrize("path", POSTS)
def test_nothing_compressed_is_taken(surface: Any, path: str, encoding: str) -> None:
    bomb = gzip.compress(b"[" * 10_000_000)

    reply = surface.client.post(path, content=bomb, headers={"Content-Encoding": encoding})

    assert reply.status_code == 415
    assert reply.json()["error"]["code"] == "unsupported_content_encoding"


class Pouring:
    """A body without an end, and how often the router has asked for more of it."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.asked = 0
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "method": "POST", "headers": raw}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.asked += 1
        assert self.asked < 1000, "the body is read on and on"
        return {"type": "http.request", "body": b" " * 65_536, "more_body": True}


@pytest.mark.parametrize(
    ("headers", "asked"), [({}, 2), ({"content-length": "1"}, 2), ({"content-length": "100001"}, 0)]
)
def test_a_body_over_the_limit_is_not_read_to_its_end(headers: dict[str, str], asked: int) -> None:
    body = Pouring(headers)

    with pytest.raises(APIError) as caught:
        asyncio.run(read_body(body.request, 100_000))

    assert (caught.value.status, caught.value.details) == (413, {"max_bytes": 100_000})
    assert body.asked == asked


@pytest.mark.parametrize("path", POSTS[:3])
@pytest.mark.parametrize("is_declared", [True, False])
def test_every_endpoint_has_a_limit_of_its_body(
    open_surface: Any, path: str, *, is_declared: bool
) -> None:
    surface = open_surface(limits={"json_body_bytes": 1024})
    body: Any = b" " * 1025 if is_declared else iter([b" " * 600] * 3)

    reply = surface.client.post(path, content=body)

    assert reply.status_code == 413


def test_no_answer_holds_the_webhooks_secret(surface: Any) -> None:
    secret = "whsec_canary-0123456789"
    webhook = {"url": "http://127.0.0.1:9/h", "secret": secret}
    batch = surface.buy(webhook=webhook)

    answers = [
        json.dumps(batch),
        surface.client.get(f"/v1/batches/{batch['id']}?include_billing_receipt=true").text,
        surface.client.get("/v1/batches").text,
        surface.client.post(f"/v1/batches/{batch['id']}/cancel").text,
    ]

    assert "http://127.0.0.1:9/h" in answers[0]
    assert "canary" not in "".join(answers)
    surface.services.database.close()
    assert b"canary" not in written(surface.services.folder.root)


def test_a_router_that_faces_the_network_takes_no_receiver_of_its_own_machine(
    open_surface: Any,
) -> None:
    surface = open_surface(is_loopback=False)
    body = {"quote_id": surface.quote()["quote_id"], "input_file_id": surface.upload()["file_id"]}

    reply = surface.submit(**body, webhook={"url": "http://127.0.0.1:9/h", "secret": "12345678"})

    assert reply.status_code == 400
    assert "only while the router is on loopback" in reply.json()["error"]["message"]


def test_nor_does_it_deliver_to_one_that_was_taken_before(open_surface: Any) -> None:
    came: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    surface = open_surface(is_loopback=False)
    batch_id = surface.buy()["id"]
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/h"
        due = {"id": "evt_1", "batch_id": batch_id, "type": "batch.submitted", "body": b"{}"}
        with surface.services.database.writing() as conn:
            conn.execute(update(batches).values(webhook_url=url))
            now = now_us()
            conn.execute(
                events.insert().values(**due, created_at=now, attempts=0, next_attempt_at=now)
            )
        wait_until(lambda: attempts_of(surface) > 0)
        time.sleep(0.5)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert came == []


def attempts_of(surface: Any) -> int:
    with surface.services.database.reading() as conn:
        return conn.execute(select(events.c.attempts)).scalar_one()


def wait_until(is_so: Callable[[], bool], within_s: float = 20.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.parametrize(
    "asked", ["a" * 65, "two words", "<b>", 'a"b', "é".encode(), b"a\x1b[31m", ""]
)
def test_a_request_id_that_is_no_name_is_replaced(surface: Any, asked: Any) -> None:
    reply = surface.client.get("/healthz", headers={"X-Request-Id": asked})

    assert reply.headers["X-Request-Id"].startswith("req_")


def test_problems_are_shown_up_to_a_number(surface: Any) -> None:
    body = {f"field_{nth}": nth for nth in range(900)}

    reply = surface.client.post("/v1/quotes/model", json=body)

    assert reply.status_code == 400
    assert len(reply.json()["error"]["details"]["problems"]) == 20


def test_a_log_line_names_an_exception_without_its_values(
    surface: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from batchrouter.server.http import routes
    from batchrouter.server.http.logs import JsonLines

    def fail(*_: object) -> None:
        raise ValueError("canary-7f2a")

    monkeypatch.setattr(routes, "list_batches", fail)
    reply = surface.client.get("/v1/batches")

    lines = [JsonLines().format(record) for record in caplog.records]
    assert reply.status_code == 500
    assert any('"type": "ValueError"' in line for line in lines)
    assert "canary-7f2a" not in "".join(lines) + reply.text


@pytest.mark.timeout(30)
@pytest.mark.parametrize("amount", ["0e999999999", "1e999999999", "1e-999999999", "0" * 1_000_000])
def test_an_amount_of_any_size_is_answered_at_once(surface: Any, amount: str) -> None:
    price = {"currency": "usd", "amount": amount}
    body = {"model": "gpt-4o-mini", "estimated_items": 1, "max_price": price}

    reply = surface.client.post("/v1/quotes/model", json=body)

    assert reply.status_code == 400
