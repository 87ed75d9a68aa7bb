"""The two drivers of a run's story: what it does about a failure is done, too."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest
from prefect_batchrouter import flows

from batchrouter.errors import BatchFailedError


def failing(done: list[str]) -> Generator[Any, Any, dict[str, Any]]:
    try:
        yield flows._Call(_fail)
    except BatchFailedError:
        yield flows._Call(lambda: done.append("woken"))
        raise
    return {}


def _fail() -> None:
    raise BatchFailedError("nothing to land")


def _async_drive(story: Generator[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    return asyncio.run(flows._adrive(story))


@pytest.mark.parametrize("drive", [flows._drive, _async_drive])
def test_what_a_story_does_about_a_failure_is_done(drive: Callable[..., Any]) -> None:
    done: list[str] = []

    with pytest.raises(BatchFailedError):
        drive(failing(done))

    assert done == ["woken"]
