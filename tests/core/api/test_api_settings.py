"""Settings from arguments and environment; secrets masked, the key never in clear."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from batchrouter.api.client import AsyncClient, Client
from batchrouter.api.settings import ENV_PREFIX, Settings
from batchrouter.errors import ConfigError


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(ENV_PREFIX + name.upper(), raising=False)


def test_every_field_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "base_url": "https://router.example",
        "api_key": "bk_live_1",
        "timeout_s": "3",
        "upload_timeout_s": "4",
        "max_attempts": "2",
        "retry_wait_s": "0.1",
        "max_retry_wait_s": "9",
        "runs_url": "s3://lake/_runs/",
        "inbox_url": "sqlite:///inbox.db",
        "webhook_url": "https://hooks.example/in",
        "webhook_secret": "whsec_x",
        "namespace": "team",
        "max_run_usd": "100.00",
        "poll_interval_s": "2",
        "storage_options": '{"key": "k"}',
        "allow_http": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(ENV_PREFIX + name.upper(), value)

    settings = Settings.from_env(timeout_s=7)

    assert set(values) == set(Settings.model_fields)
    assert settings.timeout_s == 7
    assert settings.max_run_usd == Decimal("100.00")
    assert settings.storage_options == {"key": "k"}
    assert settings.model_fields_set == set(values)


def test_a_wrong_variable_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHROUTER_TIMEOUT_S", "hunter2")
    monkeypatch.setenv("BATCHROUTER_INBOX_URL", "")

    with pytest.raises(ConfigError, match=r"timeout_s: .*BATCHROUTER_TIMEOUT_S") as caught:
        Settings.from_env()

    assert "hunter2" not in str(caught.value)
    assert "INBOX" not in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "read"),
    [
        ("https://api.example/", "https://api.example"),
        ("https://api.example/v1", "https://api.example"),
        ("https://api.example/router/v1/", "https://api.example/router"),
        ("http://localhost:8765", "http://localhost:8765"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_base_urls_people_write(base_url: str, read: str) -> None:
    assert Settings(base_url=base_url).base_url == read


@pytest.mark.parametrize(
    ("base_url", "problem"),
    [
        ("http://api.example", "in clear"),
        ("http://127.0.0.1.evil.example", "in clear"),
        ("https://bk_live_1@api.example", "api_key"),
        ("https://api.example?x=1", "after the path"),
        ("api.example", "http"),
        ("ftp://api.example", "http"),
        ("https://api.example:99999", "Port"),
    ],
)
def test_base_urls_that_are_refused(base_url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Settings(base_url=base_url)


def test_http_beyond_loopback_must_be_asked_for() -> None:
    assert Settings(base_url="http://router.internal", allow_http=True).allow_http


@pytest.mark.parametrize("key", ["", "  ", "a b", "bk\nX-Evil: 1", "schlüssel"])
def test_a_key_that_cannot_be_a_header_is_refused_unseen(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key: must be printable") as caught:
        Settings(api_key=key)  # type: ignore[arg-type]  # pydantic makes a SecretStr of it

    assert "Evil" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    settings = Settings.from_env(
        api_key="hunter2-key",
        webhook_secret="hunter2-hook",
        inbox_url="postgresql+psycopg://ann:hunter2@db/inbox?password=hunter2",
        webhook_url="https://hooks.example/in?token=hunter2",
        runs_url="s3://hunter2@lake/_runs",
        storage_options={"secret": "hunter2"},
    )

    for shown in (
        repr(settings),
        str(settings),
        json.dumps(
            settings.model_dump(mode="json", exclude={"inbox_url", "webhook_url", "runs_url"})
        ),
    ):
        assert "hunter2" not in shown


def test_unknown_settings_floats_as_money_and_changes_are_refused() -> None:
    with pytest.raises(ConfigError, match="timeout: is no setting"):
        Settings.from_env(timeout=3)
    with pytest.raises(ConfigError, match=r"max_run_usd: 1\.5 is not an amount"):
        Settings.from_env(max_run_usd=1.5)
    with pytest.raises(ValueError, match="frozen"):
        Settings().timeout_s = 3  # type: ignore[misc]  # that is what is tested


def test_the_namespace_is_the_runs_folder_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Settings().identity_namespace == str(tmp_path / "runs")
    assert Settings(runs_url=f"file://{tmp_path}/runs/").identity_namespace == str(
        tmp_path / "runs"
    )
    assert Settings(runs_url="s3://lake/_runs/").identity_namespace == "s3://lake/_runs"
    assert Settings(namespace="team").identity_namespace == "team"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_without_a_key_says_how_to_give_one(kind: type) -> None:
    with pytest.raises(ConfigError, match="BATCHROUTER_API_KEY"):
        kind()


def test_a_client_takes_settings_and_what_beats_them() -> None:
    with Client(Settings.from_env(api_key="k", timeout_s=3), max_attempts=1) as client:
        assert (client.settings.timeout_s, client.settings.max_attempts) == (3.0, 1)
        assert repr(client) == "Client(api.batchrouter.dev)"


def test_settings_load_no_http_library() -> None:
    script = "import sys, batchrouter.api.settings; sys.exit('httpx' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
