"""The sweeper: wakes flow runs whose batch has ended although no webhook came.

It also cancels the batches of flow runs that were cancelled while they slept, should no automation
have told the janitor of them.

It keeps nothing between two sweeps. Each flow run looked at its batches right before it fell
asleep, so whatever has ended since then has changed since then: one listing of changed batches,
a thousand a page, serves any number of sleepers. Without sleepers the API is not asked.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_run_logger

from batchrouter import Settings
from batchrouter.errors import BatchrouterError
from prefect_batchrouter.blocking import load_block
from prefect_batchrouter.cancelling import cancel_runs_of, run_log
from prefect_batchrouter.credentials import BatchrouterCredentials
from prefect_batchrouter.planning import Account
from prefect_batchrouter.suspending import batch_ids_of, is_ours, look_again_at, say_awake
from prefect_batchrouter.waking import abandoned, sleepers, try_resume

if TYPE_CHECKING:
    from batchrouter import AsyncClient

_PAGE = 1000
_MARGIN = timedelta(minutes=10)
"""How far Prefect's clock and the router's may be apart."""
_MOST_PAGES = 100
_AT_ONCE = 8
"""Resumes under way at a time: SQLite takes one write after the other."""


@flow(name="sweep-suspended-runs")
async def sweep_suspended_runs(credentials: Account = None) -> dict[str, int]:
    """Resume flow runs whose batches have ended, or whose time to look again has come.

    Those that were cancelled while they slept get their batches cancelled, of any account.

    Args:
        credentials: The account whose batches are looked at: a block, the name of a saved one,
            or nothing for the `BATCHROUTER_…` variables. Flow runs of other accounts sleep on.

    Returns:
        ``suspended``: flow runs that sleep for a batch; ``ended``: those among them that were
        due; ``resumed``: those that Prefect accepted; ``abandoned``: runs of cancelled flow
        runs that were asked to cancel; ``requests``: to the batchrouter API, for the listing.

    Raises:
        BatchrouterError: The API cannot be read; the next sweep begins anew.
    """
    log = get_run_logger()
    settings = await asyncio.to_thread(_settings, credentials)
    async with get_client() as prefect:
        asleep = [each for each in await sleepers(prefect) if is_ours(each)]
        ended, requests = await _ended_since(settings, asleep)
        now = datetime.now(UTC)
        due = [each for each in asleep if _is_due(each, ended, now)]
        resumed = await _resume(prefect, due)
        lost = await abandoned(prefect)
    cancelled = sum([await asyncio.to_thread(_clean_up, each) for each in lost])
    log.info(
        "%s flow runs sleep, %s are due, %s resumed, %s requests",
        len(asleep),
        len(due),
        resumed,
        requests,
    )
    return {
        "suspended": len(asleep),
        "ended": len(due),
        "resumed": resumed,
        "abandoned": cancelled,
        "requests": requests,
    }


def _settings(credentials: Account) -> Settings:
    if isinstance(credentials, str):
        credentials = load_block(BatchrouterCredentials, credentials)
    return Settings.from_env() if credentials is None else credentials.settings()


async def _ended_since(settings: Settings, asleep: Iterable[FlowRun]) -> tuple[set[str], int]:
    from batchrouter import AsyncClient  # noqa: PLC0415 - loads httpx

    since = [each.state.timestamp for each in asleep if each.state is not None]
    if not since:
        return set(), 0
    wanted = {batch_id for each in asleep for batch_id in batch_ids_of(each)}
    async with AsyncClient(settings) as client:
        return await _listed(client, min(since) - _MARGIN, wanted)


async def _listed(client: "AsyncClient", since: datetime, wanted: set[str]) -> tuple[set[str], int]:
    """List batches until all that are wanted were seen: a server may ignore `updated_after`."""
    ended: set[str] = set()
    unseen = set(wanted)
    after: str | None = None
    for requests in range(1, _MOST_PAGES + 1):
        page = await client.list_batches(
            limit=_PAGE, after=after, updated_after=since, view="summary"
        )
        ended |= {each.id for each in page.data if each.is_terminal}
        unseen -= {each.id for each in page.data}
        after = page.next_cursor
        if not after or not unseen:
            return ended & wanted, requests
    return ended & wanted, _MOST_PAGES


def _clean_up(flow_run: FlowRun) -> int:
    """Cancel what a cancelled flow run has bought, and take it off the list."""
    log = run_log()
    try:
        count = cancel_runs_of(flow_run, log, reason=f"flow run {flow_run.name} was cancelled")
    except (BatchrouterError, ValueError):
        return 0  # it is logged, and the next sweep tries again
    say_awake(flow_run.id)
    return count


def _is_due(flow_run: FlowRun, ended: set[str], now: datetime) -> bool:
    at = look_again_at(flow_run)
    return not ended.isdisjoint(batch_ids_of(flow_run)) or (at is not None and now >= at)


async def _resume(prefect: PrefectClient, due: Iterable[FlowRun]) -> int:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(flow_run: FlowRun) -> bool:
        async with gate:
            return await try_resume(prefect, flow_run.id)

    answers: list[Any] = await asyncio.gather(*(one(each) for each in due), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            get_run_logger().warning("a flow run was not resumed; the next sweep tries: %s", answer)
    return sum(answer is True for answer in answers)
