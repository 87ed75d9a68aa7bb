"""How a flow run sleeps without a process, and what it leaves behind so that it is woken.

Before it sleeps, a flow run says which batches it waits for: as tags, which the receiver and the
sweeper can search for, and with a pause key of its own. It looks once more after that. So an end
before the tags is seen by that look, and an end after them finds the flow run: none is lost.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from batchrouter.api.settings import masked_url
from batchrouter.errors import ConfigError
from prefect_batchrouter.planning import Plan

WAITING_TAG = "batchrouter:waiting"
"""On every flow run that sleeps, or is about to."""
_BATCH_TAG = "batchrouter:batch:"
PAUSE_KEY = "batchrouter-"
"""What the pause keys of our suspensions begin with: no other pause is ever resumed by us."""
LOOK_AGAIN_LABEL = "batchrouter.look_again_at"
RUN_LABEL = "batchrouter.run."

Wait = Literal["auto", "poll", "suspend"]


def batch_tag(batch_id: str) -> str:
    """The tag of a flow run that waits for this batch."""
    return f"{_BATCH_TAG}{batch_id}"


def batch_ids_of(flow_run: FlowRun) -> list[str]:
    """The batches that a flow run waits for, by its tags."""
    return [tag.removeprefix(_BATCH_TAG) for tag in flow_run.tags if tag.startswith(_BATCH_TAG)]


def is_ours(flow_run: FlowRun) -> bool:
    """True when it sleeps by our own suspension, and not for a person's input."""
    state = flow_run.state
    if state is None or not state.is_paused():
        return False
    return (state.state_details.pause_key or "").startswith(PAUSE_KEY)


def why_not_suspend() -> str | None:
    """Say what keeps the current flow run from being suspended, None if nothing does."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None:
        return "there is no flow run"
    if flow_run.parent_task_run_id is not None:
        return "this is a subflow, and only the outermost flow run can be suspended"
    if flow_run.deployment_id is None:
        return "this flow run has no deployment that could start it again"
    return None


def choose_wait(
    wait: Wait, plan: Plan, *, has_sweeper: bool
) -> tuple[Literal["poll", "suspend"], str]:
    """Decide how to wait, before anything is bought.

    Args:
        wait: What was asked for.
        plan: Says whether the router will deliver webhooks.
        has_sweeper: Whether a sweeper is deployed on this server.

    Returns:
        The way, and why.

    Raises:
        ConfigError: ``suspend`` was asked for where it cannot be done, or `wait` is unknown.
    """
    if wait not in {"auto", "poll", "suspend"}:
        raise ConfigError(f"wait: {wait!r} is unknown; use 'auto', 'poll' or 'suspend'")
    obstacle = why_not_suspend()
    if wait == "suspend" and obstacle:
        raise ConfigError(f"wait: cannot suspend: {obstacle}; use 'poll' or 'auto'")
    if wait != "auto":
        return wait, "as asked for"
    if obstacle:
        return "poll", obstacle
    if plan.settings.webhook_url is None and not has_sweeper:
        return "poll", (
            "nothing would wake it: the account has no webhook_url, and no sweeper is deployed "
            "(`prefect-batchrouter setup` deploys one)"
        )
    waker = "a sweeper" if plan.settings.webhook_url is None else "the webhook"
    return "suspend", f"this flow run has a deployment, and {waker} wakes it"


def new_pause_key() -> str:
    """A key that no suspension had before: Prefect lets each key suspend a run once only."""
    return f"{PAUSE_KEY}{uuid4().hex}"


def say_waiting(flow_run_id: UUID, batch_ids: Iterable[str], look_again_at: datetime) -> None:
    """Leave on the flow run what it waits for, in place of what it waited for before."""
    tags = {WAITING_TAG, *(batch_tag(each) for each in batch_ids)}
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        kept = {tag for tag in flow_run.tags if not _is_our_tag(tag)}
        if set(flow_run.tags) != kept | tags:
            client.update_flow_run(flow_run_id, tags=sorted(kept | tags))
        stamp = look_again_at.astimezone(UTC).isoformat()
        client.update_flow_run_labels(flow_run_id, {LOOK_AGAIN_LABEL: stamp})


def say_awake(flow_run_id: UUID) -> None:
    """Take our tags off a flow run that waits no more."""
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        kept = [tag for tag in flow_run.tags if not _is_our_tag(tag)]
        if len(kept) < len(flow_run.tags):
            client.update_flow_run(flow_run_id, tags=kept)


def say_run(plan: Plan) -> None:
    """Leave on the flow run what it takes to cancel a run of it, once, before it buys."""
    if plan.attempt is None:
        return
    told: dict[str, Any] = {
        "job": plan.job.name,
        "run_key": plan.run_key,
        "credentials": plan.block_name,
        "job_block": plan.job_block_name,
    }
    if masked_url(plan.settings.runs_url) == plan.settings.runs_url:
        told["runs_url"] = plan.settings.runs_url
    label = f"{RUN_LABEL}{plan.hashed('label')[:16]}"
    with get_client(sync_client=True) as client:
        flow_run_id = UUID(plan.attempt)
        if label not in client.read_flow_run(flow_run_id).labels:
            client.update_flow_run_labels(flow_run_id, {label: json.dumps(told)})


def runs_of(flow_run: FlowRun) -> list[dict[str, Any]]:
    """Read back what `say_run` has left: the runs that a flow run carries."""
    return [
        json.loads(str(told))
        for name, told in flow_run.labels.items()
        if name.startswith(RUN_LABEL)
    ]


def look_again_at(flow_run: FlowRun) -> datetime | None:
    """When a sleeping flow run wants to look again, whatever was heard."""
    told = flow_run.labels.get(LOOK_AGAIN_LABEL)
    return datetime.fromisoformat(str(told)) if told else None


def _is_our_tag(tag: str) -> bool:
    return tag == WAITING_TAG or tag.startswith(_BATCH_TAG)
