"""The two clients are one: same methods, same arguments, same results."""

import inspect
from typing import Any

import pytest

from batchrouter.api.client import AsyncClient, Client

METHODS = {
    "artifact_url",
    "cancel_batch",
    "close",
    "download_artifact",
    "list_batches",
    "quote_model",
    "quote_workflow",
    "retrieve_batch",
    "server_time",
    "submit_batch",
    "upload_manifest",
}


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_both_have_the_methods_of_the_design() -> None:
    assert set(public(Client)) == set(public(AsyncClient)) == METHODS


@pytest.mark.parametrize("name", ["__init__", *sorted(METHODS)])
def test_a_method_is_the_same_on_both_but_awaited(name: str) -> None:
    blocking, awaited = getattr(Client, name), getattr(AsyncClient, name)

    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert not inspect.iscoroutinefunction(blocking)
    assert inspect.iscoroutinefunction(awaited) == (name != "__init__")


def test_every_public_method_says_what_it_does() -> None:
    for name, method in public(Client).items():
        assert method.__doc__, name
