"""Nothing that a run, a receiver or a router writes holds a secret, in any of its spellings.

Canaries stand for every secret: the API key, the webhook secret, an object store's key, a
password in a URL. Whole jobs run, well and badly, with every library's logger at DEBUG; then all
that was written anywhere is searched.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from batchrouter.testing import RunningRouter, running_router
from crash.desk import CONFIG
from crash.scene import Store, s3_store
from crash.test_bad_deliveries import Receiver

CONFIDANT = Path(__file__).parent / "confidant.py"
STORE_KEY = "canary-store-key-5e9b1f"
STORE_SECRET = "canary/store+secret=7d2c40"
PASSWORD = "canary-password-93fa"
THE_ROUTERS_OWN = {"api_key", "secret_key"}
"""Where the router keeps secrets on purpose, mode 0600."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("r") / "router", config=CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


def spellings(secret: str) -> set[bytes]:
    """The secret as it is, and as base64, hex, URL-encoded and escaped text would show it."""
    raw = secret.encode()
    found = {raw, raw.hex().encode(), quote(secret, safe="").encode()}
    found.add(json.dumps(secret)[1:-1].encode())
    for shift in range(3):
        # Inside a longer base64 text a secret stands at one of three offsets.
        encoded = base64.b64encode(b"\0" * shift + raw)
        found.add(encoded[4 if shift else 0 : -4])
    if secret.startswith("whsec_"):
        found.add(base64.b64decode(secret.removeprefix("whsec_")))
    return found


def leaks(secrets: list[str], written: dict[str, bytes]) -> list[str]:
    return [
        f"{name}: {secret[:12]}… as {spelling[:12]!r}…"
        for secret in secrets
        for spelling in spellings(secret)
        for name, content in written.items()
        if spelling in content
    ]


def files(folder: Path, *, but: set[str] = frozenset()) -> dict[str, bytes]:  # type: ignore[assignment]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in but
    }


def confide(root: Path, asked: dict[str, Any], **env: str) -> tuple[str, dict[str, bytes]]:
    """Run a job in its own process; returns how it ended, and what it said."""
    kept = {name: value for name, value in os.environ.items() if "BATCHROUTER" not in name}
    done = subprocess.run(
        [sys.executable, str(CONFIDANT)],
        input=json.dumps(asked),
        env={**kept, **env},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "ended: " in done.stdout, done.stderr[-3000:]
    end = done.stdout.rpartition("ended: ")[2].strip()
    return end, {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}


def asked(router: RunningRouter, root: Path, **changes: Any) -> dict[str, Any]:
    source = root / "rows.jsonl"
    source.write_text("".join(f'{{"id": {row}, "text": "card {row}"}}\n' for row in range(5)))
    job: dict[str, Any] = {
        "name": "label",
        "source": str(source),
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": [changes.pop("model", "quick")]},
        "budget": changes.pop("budget", "5.00"),
        "sink": changes.pop("sink", str(root / "labelled")),
    }
    settings = {
        "base_url": router.base_url,
        "api_key": router.api_key,
        "runs_url": str(root / "runs"),
        "max_attempts": 2,
        "retry_wait_s": 0.01,
        **changes,
    }
    return {"job": job, "settings": settings}


def test_the_search_finds_what_it_looks_for() -> None:
    secret = "whsec_" + base64.b64encode(b"canary of 24 bytes here!").decode()
    token = base64.b64encode(f"user:{STORE_SECRET}:rest".encode())

    assert leaks([secret], {"a": b"... canary of 24 bytes here! ..."})
    assert leaks([STORE_SECRET], {"a": token})
    assert leaks([STORE_SECRET], {"a": quote(STORE_SECRET, safe="").encode()})
    assert not leaks([secret, STORE_SECRET], {"a": b"nothing"})


def test_a_job_with_webhooks_writes_no_secret(router: RunningRouter, tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    try:
        question = asked(
            router,
            tmp_path,
            webhook_url=receiver.url,
            webhook_secret=receiver.secret,
            inbox_url=receiver.inbox_url,
        )
        end, said = confide(tmp_path, question)
    finally:
        said_receiver = receiver.stop().encode()

    written = said | files(tmp_path) | files(router.data_dir, but=THE_ROUTERS_OWN)
    written["receiver"] = said_receiver
    assert end == "landed"
    assert any("journal" in name for name in written)
    assert any(name.startswith("router.db") for name in written)
    assert leaks([router.api_key, receiver.secret], written) == []


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("budget_exceeded", {"budget": "0.000001"}),
        ("batch_failed", {"model": "refusing"}),
        ("model_not_found", {"model": "unknown"}),
        ("config_error", {"base_url": f"http://user:{PASSWORD}@127.0.0.1:9"}),
        ("unauthorized", {"api_key": "bk_live_canary_wrong_key_2f81"}),
    ],
)
def test_a_job_that_fails_says_no_secret(
    router: RunningRouter, tmp_path: Path, expected: str, changes: dict[str, Any]
) -> None:
    secret = changes.get("api_key", router.api_key)
    end, said = confide(tmp_path, asked(router, tmp_path, **changes))

    assert end == expected
    written = said | files(tmp_path) | files(router.data_dir, but=THE_ROUTERS_OWN)
    assert leaks([secret, PASSWORD], written) == []


def test_a_job_on_an_object_store_writes_no_secret(
    router: RunningRouter, s3: Store, tmp_path: Path
) -> None:
    url = f"{s3.url}/{tmp_path.name}"
    options = {
        "key": STORE_KEY,
        "secret": STORE_SECRET,
        "client_kwargs": {"endpoint_url": s3.env["AWS_ENDPOINT_URL"]},
    }
    question = asked(router, tmp_path, runs_url=f"{url}/runs", storage_options=options)

    end, said = confide(tmp_path, question, AWS_DEFAULT_REGION="us-east-1")

    filesystem = s3.filesystem()
    objects = {path: filesystem.cat_file(path) for path in filesystem.find(url)}
    written = said | files(tmp_path) | objects | files(router.data_dir, but=THE_ROUTERS_OWN)
    assert end == "landed"
    assert any("journal" in path for path in objects)
    assert leaks([router.api_key, STORE_SECRET], written) == []
