"""Many waits of one event loop: how often the watcher looks, and what that asks of the inbox."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from batchrouter.api.client import AsyncClient
from batchrouter.run import AsyncWatcher
from batchrouter.webhooks.signing import Event


class CountingInbox:
    """An inbox that holds nothing and counts the looks into it."""

    def __init__(self) -> None:
        self.looks = 0

    def events_since(self, _cursor: str | None) -> tuple[list[Event], str]:
        self.looks += 1
        return [], "0"


def test_a_thousand_waits_look_into_the_inbox_as_often_as_one() -> None:
    inbox = CountingInbox()
    watcher = AsyncWatcher(poll_interval_s=600, inbox=cast("Any", inbox))
    until = datetime.now(UTC) + timedelta(seconds=2)
    nobody = cast("AsyncClient", None)  # only events wake these waits, and none comes

    async def wait_all() -> list[bool]:
        waits = [
            watcher.wait(nobody, [f"batch_{number}"], until=until, mode="webhook")
            for number in range(1000)
        ]
        return await asyncio.gather(*waits)

    assert not any(asyncio.run(wait_all()))
    assert 1 <= inbox.looks <= 12
