"""Waking flow runs that sleep for a batch, until Prefect has taken it.

The event may come before the flow run is quite asleep, while the Prefect server restarts, twice,
or to two receivers at once. So one wake is a small loop: look at the flow run, resume it if it
sleeps for this batch, and go on until it is awake, final, or waits for something else.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import httpx  # noqa: TID251 - Prefect's client lets its errors through
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_batchrouter.suspending import WAITING_TAG, batch_tag, is_ours

_log = logging.getLogger("prefect_batchrouter.waking")

_OPEN = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
]
_PAGE = 200
"""Prefect's own bound of one answer."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
PATIENCE_S = 3600.0
"""After this the sweeper is left to it."""

_UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError, OSError)

Verdict = Literal["resumed", "awake", "elsewhere", "gone", "gave_up"]


@dataclass(frozen=True, slots=True)
class Woken:
    """What became of one flow run.

    Attributes:
        verdict: ``resumed`` by us; ``awake`` already, so that it looks by itself; ``elsewhere``:
            it no longer waits for this batch; ``gone``: final or deleted; ``gave_up`` after an
            hour.
        tries: How often Prefect was asked to resume it.
    """

    flow_run_id: UUID
    verdict: Verdict
    tries: int


async def sleepers(client: PrefectClient, batch_id: str | None = None) -> list[FlowRun]:
    """Find flow runs that wait for a batch, or for any, and are not final.

    Args:
        client: Prefect's.
        batch_id: None for all of them.
    """
    return await _tagged(client, batch_id, _OPEN)


async def abandoned(client: PrefectClient) -> list[FlowRun]:
    """Find flow runs that were cancelled while they waited, and whose batches may still run."""
    return await _tagged(client, None, [StateType.CANCELLED])


async def _tagged(
    client: PrefectClient, batch_id: str | None, states: list[StateType]
) -> list[FlowRun]:
    tags = [WAITING_TAG] if batch_id is None else [WAITING_TAG, batch_tag(batch_id)]
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=tags),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    found: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


async def wake_all(
    client: PrefectClient, batch_id: str, *, patience_s: float = PATIENCE_S
) -> list[Woken]:
    """Wake every flow run that sleeps for a batch, with backoff until Prefect accepts.

    Returns:
        What became of each; empty when none waits for it.
    """
    end_s = time.monotonic() + patience_s
    async for _ in pauses(f"find who waits for {batch_id}", patience_s):
        try:
            found = await sleepers(client, batch_id)
        except _UNREACHABLE as error:
            _log.warning("Prefect does not answer: %s", error)
            continue
        waking = (wake(client, each.id, batch_id, end_s) for each in found)
        return list(await asyncio.gather(*waking))
    return []


async def pauses(what: str, patience_s: float = PATIENCE_S) -> AsyncGenerator[None]:
    """Let a loop try at once, then after longer and longer pauses, and not for ever."""
    end_s = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while True:
        yield
        if time.monotonic() >= end_s:
            _log.error("gave up trying to %s: the sweeper is left to it", what)
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def wake(client: PrefectClient, flow_run_id: UUID, batch_id: str, end_s: float) -> Woken:
    """Wake one flow run; see `wake_all`."""
    pause_s, tries = FIRST_PAUSE_S, 0
    while True:
        verdict: Verdict | None
        try:
            flow_run = await client.read_flow_run(flow_run_id)
            verdict = _verdict(flow_run, batch_id)
            if verdict is None and is_ours(flow_run):
                tries += 1
                verdict = "resumed" if await try_resume(client, flow_run_id) else None
        except ObjectNotFound:
            verdict = "gone"
        except _UNREACHABLE as error:
            _log.warning("Prefect does not answer, going on in %.1f s: %s", pause_s, error)
            verdict = None
        if verdict is None and time.monotonic() >= end_s:
            _log.error("gave up waking flow run %s: the sweeper will find it", flow_run_id)
            verdict = "gave_up"
        if verdict is not None:
            _log.info("flow run %s for %s: %s", flow_run_id, batch_id, verdict)
            return Woken(flow_run_id, verdict, tries)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def try_resume(client: PrefectClient, flow_run_id: UUID) -> bool:
    """Ask Prefect once to resume a flow run.

    Returns:
        True when it was accepted. Another one may have been faster, which is as good.
    """
    answer = await client.resume_flow_run(flow_run_id)
    return answer.status == SetStateStatus.ACCEPT


def _verdict(flow_run: FlowRun, batch_id: str) -> Verdict | None:
    """Say whether there is nothing to do any more; None while it is to be resumed, or may be."""
    state = flow_run.state
    if state is None or state.is_final() or state.is_cancelling():
        return "gone"
    if batch_tag(batch_id) not in flow_run.tags:
        return "elsewhere"
    if state.is_scheduled() or state.is_pending():
        return "awake"  # it has been resumed, and looks when it starts
    return None
