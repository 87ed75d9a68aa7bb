"""`batchrouter lanes`: what check says of keys, models, prices; how a held one is settled."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from batchrouter import Client
from batchrouter.testing import FaultProxy, running_router
from server.stand_in import KEY, StandIn


def cli(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchrouter", "lanes", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def written(path: Path, base_url: str, *models: tuple[str, str, str], adapter: str) -> str:
    listed = [
        {"name": name, "input_usd_per_mtok": given, "output_usd_per_mtok": made}
        for name, given, made in models
    ]
    lane = {
        "provider": "acme",
        "adapter": adapter,
        "region": "eu",
        "capacity_items": 1000,
        "models": listed,
        "options": {
            "base_url": base_url,
            "api_key_env": "STAND_IN_KEY",
            "poll_s": 0.1,
            "settle_s": 0.5,
        },
    }
    path.write_text(json.dumps({"lanes": [lane]}), encoding="utf-8")
    return str(path)


def found(told: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], str]:
    return {(one["subject"], one["level"]): one["told"] for one in json.loads(told.stdout)}


def test_check_names_models_and_prices_that_differ(
    provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    config = written(
        tmp_path / "router.json",
        provider.base_url,
        ("gpt-4o-mini", "0.15", "0.60"),
        ("gpt-nowhere", "1", "2"),
        adapter="openai-batch",
    )

    told = cli("check", "--config", config, "--json")

    assert told.returncode == 2
    assert "gpt-nowhere is not listed; there is gpt-4o-mini" in found(told)["model", "fail"]
    assert "gpt-4o-mini is there" in found(told)["model", "ok"]
    assert "on 2026-11-22 the list had 0.075 in, 0.30 out" in found(told)["price", "warn"]
    assert not provider.batches


def test_check_says_that_a_key_is_wrong_without_showing_it(
    provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", "sk-canary-secret")
    config = written(
        tmp_path / "router.json",
        provider.base_url,
        ("gpt-4o-mini", "0.075", "0.30"),
        adapter="openai-batch",
    )

    told = cli("check", "--config", config)

    assert told.returncode == 2
    assert "is this the right key?" in told.stdout
    assert "canary" not in told.stdout + told.stderr


def test_check_names_a_variable_that_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STAND_IN_KEY", raising=False)
    config = written(
        tmp_path / "router.json", "http://127.0.0.1:9/v1", ("m", "1", "1"), adapter="openai-batch"
    )

    assert (
        "STAND_IN_KEY is not set"
        in found(cli("check", "--config", config, "--json"))["key", "fail"]
    )


def test_a_held_submission_is_listed_and_settled(
    provider: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    with FaultProxy(provider.origin) as proxy:
        proxy.answer("POST", "/v1/messages/batches", status=500)
        config = written(
            tmp_path / "router.json", proxy.base_url, ("m", "1", "1"), adapter="anthropic-batch"
        )
        with (
            running_router(
                tmp_path / "router", config=json.loads(Path(config).read_text())
            ) as router,
            Client(router.settings()) as client,
        ):
            batch_id = _buy_one(client)
            held = _until_held(router.data_dir)
            assert (held["items"], held["lane"]) == (1, "acme")
            assert "no reply" in held["why"]

            neither = cli("reconcile", held["submission"], "--data", str(router.data_dir))
            assert neither.returncode == 2
            told = cli(
                "reconcile", held["submission"], "--data", str(router.data_dir), "--not-bought"
            )
            assert told.returncode == 0, told.stderr

            # A held one is looked at every half minute; a restart looks at once.
            router.restart()
            ends_at = time.monotonic() + 60
            while not client.retrieve_batch(batch_id).is_terminal:
                assert time.monotonic() < ends_at
                time.sleep(0.1)
            assert client.retrieve_batch(batch_id).state == "succeeded"
            assert sum(provider.bought.values()) == 1
            again = cli(
                "reconcile", held["submission"], "--data", str(router.data_dir), "--adopt", "b"
            )
            assert again.returncode == 2
            assert "lanes list" in again.stderr


def _until_held(data_dir: Path) -> dict[str, Any]:
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at:
        listed = json.loads(cli("list", "--data", str(data_dir), "--json").stdout)
        if listed and listed[0]["state"] == "held":
            return listed[0]
    raise AssertionError("nothing is held")


def _buy_one(client: Client) -> str:
    line = {
        "customer_item_id": "row-0",
        "operation": "responses",
        "input": {"messages": [{"role": "user", "content": "hello"}], "max_output_tokens": 64},
    }
    content = json.dumps(line).encode() + b"\n"
    file = client.upload_manifest(lambda: io.BytesIO(content), filename="items.jsonl")
    quote = client.quote_model(
        ["m"],
        estimated_items=1,
        estimated_input_tokens=40,
        estimated_output_tokens=64,
        max_output_tokens=64,
    )
    return client.submit_batch({"quote_id": quote.quote_id, "input_file_id": file.file_id}).id
