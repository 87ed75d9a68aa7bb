"""`running_router`: a real process that can be killed, restarted, configured, and asked."""

import os

import pytest

from batchrouter import Client
from batchrouter.errors import AuthError, ConfigError, TransportError
from batchrouter.testing import FaultProxy, running_router


def test_it_answers_dies_and_comes_back_where_it_was(tmp_path) -> None:
    with running_router(tmp_path / "router") as router:
        settings = router.settings(max_attempts=1)
        with Client(settings) as client:
            quote = client.quote_model(["gpt-4o-mini"], estimated_items=10)
            before = router.pid

            router.kill()
            with pytest.raises(TransportError):
                client.list_batches()
            router.start()

            assert router.settings(max_attempts=1) == settings
            assert router.pid != before
            assert client.list_batches().data == ()
            assert (
                client.quote_model(["gpt-4o-mini"], estimated_items=10).quote_id != quote.quote_id
            )
        last = router.pid

    assert (tmp_path / "router" / "api_key").exists(), "the caller's folder stays"
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_config_a_key_and_a_public_url_of_the_tests_own() -> None:
    config = {
        "lanes": [
            {
                "provider": "simulated-only",
                "region": "mars",
                "capacity_items": 5,
                "models": [{"name": "m", "input_usd_per_mtok": "1"}],
            }
        ]
    }
    with FaultProxy() as proxy, running_router(config=config, public_url=proxy.base_url) as router:
        proxy.upstream = router.base_url
        reader = router.mint_key(["read"])
        with Client(router.settings(base_url=proxy.base_url, api_key=reader)) as client:
            assert client.list_batches().data == ()
            with pytest.raises(AuthError):
                client.quote_model(["m"], estimated_items=1)
        with Client(router.settings()) as client:
            [lane] = client.quote_model(["m"], estimated_items=1).quote_lanes

    assert lane.provider == "simulated-only"
    assert proxy.count("POST", "/v1/quotes/model") == 1


def test_a_config_that_the_router_refuses_is_an_error_with_its_log() -> None:
    with (
        pytest.raises(TransportError, match="lanes"),
        running_router(config={"lanes": []}),
    ):
        pass


def test_a_config_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"), running_router(config="nowhere.toml"):
        pass
