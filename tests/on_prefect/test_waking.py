"""Waking flow runs on a real Prefect server, whatever comes first, twice, or not at all."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.states import Completed, Running, Suspended
from prefect_batchrouter.blocking import blocking
from prefect_batchrouter.suspending import WAITING_TAG, batch_tag, new_pause_key
from prefect_batchrouter.waking import Woken, sleepers, wake_all

pytestmark = pytest.mark.usefixtures("harness")


@flow
def sleeper() -> None: ...


@pytest.fixture(scope="module")
def deployment_id(harness: None) -> UUID:
    # Nobody serves it: flow runs of it stay where the test puts them.
    return blocking(blocking(sleeper.to_deployment)("sleeper").apply)()


def asleep() -> State[Any]:
    return Suspended(timeout_seconds=600, pause_key=new_pause_key())


async def made(
    client: PrefectClient, deployment_id: UUID, batch_id: str, state: State[Any]
) -> UUID:
    flow_run = await client.create_flow_run_from_deployment(
        deployment_id, tags=[WAITING_TAG, batch_tag(batch_id)]
    )
    await client.set_flow_run_state(flow_run.id, state, force=True)
    return flow_run.id


def play(
    deployment_id: UUID,
    state: State[Any],
    act: Callable[[PrefectClient, UUID, str], Awaitable[Any]],
) -> tuple[Any, State[Any]]:
    """Make a flow run that waits for a batch, act, and return what came of it and its state."""

    async def story() -> tuple[Any, State[Any]]:
        async with get_client() as client:
            batch_id = f"batch_{uuid4().hex}"
            flow_run_id = await made(client, deployment_id, batch_id, state)
            answer = await act(client, flow_run_id, batch_id)
            after = await client.read_flow_run(flow_run_id)
            assert after.state is not None
            return answer, after.state

    return asyncio.run(story())


async def wake_once(client: PrefectClient, _id: UUID, batch_id: str) -> list[Woken]:
    return await wake_all(client, batch_id, patience_s=20)


def test_one_that_sleeps_is_resumed(deployment_id: UUID) -> None:
    woken, state = play(deployment_id, asleep(), wake_once)

    assert [(each.verdict, each.tries) for each in woken] == [("resumed", 1)]
    assert state.name == "Resuming"


def test_the_event_before_the_suspension(deployment_id: UUID) -> None:
    async def act(client: PrefectClient, flow_run_id: UUID, batch_id: str) -> list[Woken]:
        waking = asyncio.create_task(wake_all(client, batch_id, patience_s=60))
        await asyncio.sleep(2)
        assert not waking.done()
        await client.set_flow_run_state(flow_run_id, asleep(), force=True)
        return await waking

    woken, state = play(deployment_id, Running(), act)

    assert [each.verdict for each in woken] == ["resumed"]
    assert state.name == "Resuming"


def test_two_events_at_once(deployment_id: UUID) -> None:
    async def act(client: PrefectClient, _id: UUID, batch_id: str) -> list[list[Woken]]:
        return list(
            await asyncio.gather(*(wake_all(client, batch_id, patience_s=20) for _ in range(4)))
        )

    woken, state = play(deployment_id, asleep(), act)

    verdicts = [each.verdict for found in woken for each in found]
    assert verdicts.count("resumed") == 1
    assert set(verdicts) <= {"resumed", "awake"}
    assert state.name == "Resuming"


def test_another_pause_is_left_alone(deployment_id: UUID) -> None:
    # A person is asked for something: our event is no answer to it.
    asked = Suspended(timeout_seconds=600, pause_key="approval")

    async def act(client: PrefectClient, _id: UUID, batch_id: str) -> list[Woken]:
        return await wake_all(client, batch_id, patience_s=1)

    woken, state = play(deployment_id, asked, act)

    assert [(each.verdict, each.tries) for each in woken] == [("gave_up", 0)]
    assert state.name == "Suspended"


def test_one_that_waits_for_something_else_now(deployment_id: UUID) -> None:
    async def act(client: PrefectClient, flow_run_id: UUID, batch_id: str) -> list[Woken]:
        waking = asyncio.create_task(wake_all(client, batch_id, patience_s=60))
        await asyncio.sleep(1)
        await client.update_flow_run(flow_run_id, tags=[WAITING_TAG, batch_tag("batch_next")])
        await client.set_flow_run_state(flow_run_id, asleep(), force=True)
        return await waking

    woken, state = play(deployment_id, Running(), act)

    assert [each.verdict for each in woken] == ["elsewhere"]
    assert state.name == "Suspended"


def test_a_final_one_is_left_alone(deployment_id: UUID) -> None:
    async def act(client: PrefectClient, flow_run_id: UUID, batch_id: str) -> list[Woken]:
        waking = asyncio.create_task(wake_all(client, batch_id, patience_s=60))
        await asyncio.sleep(1)
        await client.set_flow_run_state(flow_run_id, Completed(), force=True)
        return await waking

    woken, state = play(deployment_id, Running(), act)

    assert [each.verdict for each in woken] == ["gone"]
    assert state.type == StateType.COMPLETED


def test_nobody_waits(harness: None) -> None:
    async def act() -> list[Woken]:
        async with get_client() as client:
            return await wake_all(client, "batch_of_nobody")

    assert asyncio.run(act()) == []


def test_more_sleepers_than_a_page(deployment_id: UUID) -> None:
    async def story() -> int:
        async with get_client() as client:
            for _ in range(5):
                await made(client, deployment_id, "batch_shared", asleep())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("prefect_batchrouter.waking._PAGE", 2)
                return len(await sleepers(client, "batch_shared"))

    assert asyncio.run(story()) == 5


def test_a_pause_key_is_ours_by_its_name() -> None:
    details = StateDetails(pause_key=new_pause_key())

    assert (details.pause_key or "").startswith("batchrouter-")
    assert new_pause_key() != new_pause_key()
