"""`batchrouter doctor` on real routers, receivers and stores, each with one thing wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import libfaketime
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from batchrouter.cli import diagnosis, main
from batchrouter.testing import RunningRouter, running_router
from batchrouter.webhooks.inbox import open_inbox
from batchrouter.webhooks.signing import mint_secret
from crash.scene import s3_store
from crash.test_bad_deliveries import Receiver

Findings = dict[str, dict[str, Any]]
Doctor = Callable[..., tuple[int, Findings]]


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with running_router(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def doctor(
    router: RunningRouter,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Doctor:
    """Examine a good set-up with some settings changed: the exit code, and the worst by subject."""
    monkeypatch.chdir(tmp_path)

    def ask(**changes: str) -> tuple[int, Findings]:
        settings = {"base_url": router.base_url, "api_key": router.api_key, "max_run_usd": "5"}
        for name, value in {**settings, **changes}.items():
            monkeypatch.setenv(f"BATCHROUTER_{name.upper()}", value)
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "--json"])
        told = json.loads(capfd.readouterr().out)
        found: Findings = {}
        for finding in told["findings"]:
            if found.get(finding["subject"], finding)["level"] in {"ok", finding["level"]}:
                found[finding["subject"]] = finding
        code = int(ended.value.code or 0)
        assert told["ok"] is (code == 0)
        return code, found

    return ask


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    running = Receiver(tmp_path)
    yield running
    running.stop()


def levels(found: Findings) -> set[str]:
    return {finding["level"] for finding in found.values()}


def test_a_good_set_up_is_well_and_nothing_is_left_behind(
    doctor: Doctor, receiver: Receiver, tmp_path: Path, router: RunningRouter
) -> None:
    before = {path.name for path in tmp_path.iterdir()}

    code, found = doctor(
        webhook_url=receiver.url, webhook_secret=receiver.secret, inbox_url=receiver.inbox_url
    )

    assert (code, levels(found)) == (0, {"ok"}), found
    assert "arrived in the inbox" in found["webhooks"]["told"]
    assert "read, quote, submit and cancel" in found["key"]["told"]
    assert "pydantic " in found["versions"]["told"]
    assert {path.name for path in tmp_path.iterdir()} == before
    assert router.settings().api_key is not None
    events, _ = open_inbox(receiver.inbox_url).events_since(None)
    assert [event.type for event in events] == ["doctor.ping"]


@pytest.mark.parametrize(
    ("scopes", "told", "code"),
    [
        ("quote,submit,read", "lacks the scope cancel: cancel is needed to cancel", 0),
        ("quote,read,cancel", "lacks the scope submit: submit is needed to upload", 5),
        ("submit,read,cancel", "lacks the scope quote: quote is needed to ask", 5),
        ("quote,submit", "lacks the scope read, cancel: read is needed to wait", 5),
    ],
)
def test_what_the_key_lacks_and_for_what(
    doctor: Doctor, router: RunningRouter, scopes: str, told: str, code: int
) -> None:
    exit_code, found = doctor(api_key=router.mint_key(scopes.split(",")))

    assert (exit_code, found["key"]["level"]) == (code, "fail" if code else "warn")
    assert told in found["key"]["told"]
    assert "keys create" in found["key"]["advice"]


def test_a_key_that_the_router_does_not_know(doctor: Doctor) -> None:
    code, found = doctor(api_key="bk_live_unknown")

    assert code == 5
    assert found["key"]["advice"] == "The router does not know this key, or it is revoked."


@pytest.mark.parametrize(
    ("skew", "level", "code"),
    [("-1h", "fail", 2), pytest.param("+40s", "warn", 0, marks=pytest.mark.drill)],
)
def test_a_clock_that_is_off(
    doctor: Doctor, tmp_path: Path, skew: str, level: str, code: int
) -> None:
    _, preload = libfaketime.get_reload_information()

    with running_router(tmp_path / "skewed", env={**preload, "FAKETIME": skew}) as skewed:
        exit_code, found = doctor(base_url=skewed.base_url, api_key=skewed.api_key)

    assert (exit_code, found["clock"]["level"]) == (code, level)
    seconds = int(found["clock"]["told"].split()[0])
    assert abs(seconds - (40 if skew == "+40s" else 3600)) < 10
    assert "NTP" in found["clock"]["advice"]


def test_a_router_that_is_not_there(doctor: Doctor) -> None:
    code, found = doctor(base_url="http://127.0.0.1:9")

    assert code == 6
    assert "Is the router running" in found["router"]["advice"]
    assert found["runs"]["level"] == "ok", "the other branches are looked at all the same"


class Careless(MemoryFileSystem):
    """A store that lets a second writer replace what the first created."""

    protocol = "careless"
    store: ClassVar[dict[str, Any]] = {}

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        super().pipe_file(path, value, mode="overwrite")


def test_a_store_without_exclusive_create(doctor: Doctor) -> None:
    fsspec.register_implementation("careless", Careless, clobber=True)

    code, found = doctor(runs_url="careless://lake/runs")

    assert code == 10
    assert "let two writers create the same file" in found["runs"]["told"]
    assert "buy the same run twice" in found["runs"]["advice"]
    assert Careless.store == {}


def test_an_object_store_with_exclusive_create_and_an_inbox_that_others_do_not_see(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_store(tmp_path) as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)

        code, found = doctor(runs_url=f"{store.url}/runs", inbox_url="sqlite:///inbox.db")

        assert store.filesystem().find("drills") == []
    assert code == 0
    assert "each file is created once" in found["runs"]["told"]
    assert found["inbox"]["level"] == "warn"
    assert "workers elsewhere do not see it" in found["inbox"]["told"]


def test_an_inbox_that_nobody_can_share(doctor: Doctor) -> None:
    code, found = doctor(inbox_url="memory://inbox")

    assert code == 10
    assert "in the memory of one process" in found["inbox"]["told"]


def test_an_inbox_that_cannot_be_read(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "inbox.db").write_text("no database, and longer than a header of one: " * 9)

    code, found = doctor(inbox_url="sqlite:///inbox.db")

    assert code == 10
    assert "cannot be read" in found["inbox"]["told"]


def test_webhooks_that_are_set_up_in_part(doctor: Doctor) -> None:
    code, found = doctor(inbox_url="sqlite:///inbox.db")

    assert code == 0
    assert found["webhooks"]["level"] == "warn"
    assert "WEBHOOK_URL, BATCHROUTER_WEBHOOK_SECRET not set" in found["webhooks"]["told"]


def test_a_receiver_with_another_secret(doctor: Doctor, receiver: Receiver) -> None:
    code, found = doctor(
        webhook_url=receiver.url, webhook_secret=mint_secret(), inbox_url=receiver.inbox_url
    )

    assert code == 5
    assert "answered 401" in found["webhooks"]["told"]
    assert "WEBHOOK_SECRET is not this one" in found["webhooks"]["advice"]


def test_a_receiver_that_writes_into_another_inbox(doctor: Doctor, receiver: Receiver) -> None:
    code, found = doctor(
        webhook_url=receiver.url, webhook_secret=receiver.secret, inbox_url="sqlite:///mine.db"
    )

    assert code == 10
    assert "it is not in this inbox" in found["webhooks"]["told"]


def test_a_receiver_that_is_down(doctor: Doctor) -> None:
    code, found = doctor(
        webhook_url="http://127.0.0.1:9/hook",
        webhook_secret=mint_secret(),
        inbox_url="sqlite:///inbox.db",
    )

    assert code == 0
    assert found["webhooks"]["level"] == "warn"
    assert "does not answer this machine: Connection refused" in found["webhooks"]["told"]


def test_something_else_at_the_receivers_url(doctor: Doctor, router: RunningRouter) -> None:
    code, found = doctor(
        webhook_url=f"{router.base_url}/hook",
        webhook_secret=mint_secret(),
        inbox_url="sqlite:///inbox.db",
    )

    assert code == 5
    assert "answered 404" in found["webhooks"]["told"]


def test_a_url_that_the_router_would_not_deliver_to(doctor: Doctor) -> None:
    code, found = doctor(webhook_url="https://127.0.0.1:22/hook", webhook_secret=mint_secret())

    assert code == 5
    assert "webhook.url" in found["webhook url"]["told"]
    assert "HTTPS on 443 or 8443" in found["webhook url"]["advice"]


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://lake/runs", "gcs"), ("abfs://lake/runs", "azure")]
)
def test_a_library_that_is_missing_for_the_runs_url(doctor: Doctor, url: str, extra: str) -> None:
    code, found = doctor(runs_url=url)

    assert code == 2
    assert found["runs"]["advice"] == f"pip install 'batchrouter-core[{extra}]'"


def test_an_extra_that_is_missing(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = diagnosis.find_spec
    monkeypatch.setattr(
        diagnosis, "find_spec", lambda name: None if name in {"duckdb", "s3fs"} else find_spec(name)
    )

    code, found = doctor()

    assert code == 0
    assert found["[tables]"]["told"] == "not installed (duckdb)"
    assert "pip install 'batchrouter-core[tables]'" in found["[tables]"]["advice"]
    assert "s3" not in found["other extras"]["told"].split(", ")
