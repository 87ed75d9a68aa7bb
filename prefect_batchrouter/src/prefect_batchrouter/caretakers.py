"""Setting up who looks after sleeping flow runs: the sweeper and the janitor.

An automation starts the janitor when a flow run is cancelled while it sleeps.

Everything has a fixed name, so that setting up again changes what is there and adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.automations import Automation
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ResumeFlowRun, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from batchrouter.errors import ConfigError
from prefect_batchrouter.blocking import blocking
from prefect_batchrouter.cancelling import cancel_abandoned_runs
from prefect_batchrouter.sweeping import sweep_suspended_runs

FLOW = "run-batch-job"
NAME = "batchrouter"
"""Of both deployments."""
CANCEL_AUTOMATION = "batchrouter: cancel the batches of cancelled flow runs"
WAKE_AUTOMATION = "batchrouter: resume flow runs whose batch has ended"
SWEEP_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Caretakers:
    """What was set up, by id."""

    sweeper_id: UUID
    janitor_id: UUID
    cancel_automation_id: UUID


def caretaker_deployments(
    credentials: str | None = None, *, sweep_every: timedelta = SWEEP_EVERY, **options: Any
) -> list[RunnerDeployment]:
    """Describe the sweeper's and the janitor's deployments, to `serve` or to apply.

    Args:
        credentials: The name of the saved block of the account whose batches the sweeper looks
            at; None for the `BATCHROUTER_…` variables of its process.
        sweep_every: How often it looks.
        options: More for `Flow.to_deployment`, such as `work_pool_name` and `job_variables`.

    Example:
        One process that serves the job and looks after it:

        >>> prefect.serve(                                                # doctest: +SKIP
        ...     run_batch_job.to_deployment("labels", parameters={"job": "label.yaml"}),
        ...     *caretaker_deployments("prod"),
        ... )
    """
    described = {
        "entrypoint_type": EntrypointType.MODULE_PATH,
        "tags": ["batchrouter"],
        **options,
    }
    sweeper: Any = blocking(sweep_suspended_runs.to_deployment)(
        NAME,
        interval=sweep_every,
        # Two sweeps at once are harmless and useless.
        concurrency_limit=1,
        parameters={"credentials": credentials},
        description="Resumes flow runs whose batch has ended although no webhook came.",
        **described,
    )
    janitor: Any = blocking(cancel_abandoned_runs.to_deployment)(
        NAME,
        description="Cancels the batches of a flow run that was cancelled while it slept.",
        **described,
    )
    return [sweeper, janitor]


def set_up_caretakers(
    work_pool: str,
    credentials: str | None = None,
    *,
    flows: Sequence[str] = (FLOW,),
    sweep_every: timedelta = SWEEP_EVERY,
    job_variables: dict[str, Any] | None = None,
    image: str | None = None,
) -> Caretakers:
    """Deploy both on a work pool and make the automation; again it changes what is there.

    Args:
        work_pool: Where they run; its environment has this package installed.
        credentials: As `caretaker_deployments`.
        flows: Names of the flows whose cancelled runs start the janitor at once; those of others
            are found by the sweeper.
        sweep_every: How often the sweeper looks.
        job_variables: For the work pool, such as `env`.
        image: For pools that run containers.

    Raises:
        ConfigError: There is no such work pool.

    Example:
        >>> set_up_caretakers("default", "prod")                          # doctest: +SKIP
        Caretakers(sweeper_id=..., janitor_id=..., cancel_automation_id=...)
    """
    _check_pool(work_pool)
    options: dict[str, Any] = {"work_pool_name": work_pool, "job_variables": job_variables or {}}
    sweeper, janitor = caretaker_deployments(credentials, sweep_every=sweep_every, **options)
    sweeper_id = blocking(sweeper.apply)(image=image)
    janitor_id = blocking(janitor.apply)(image=image)
    automation_id = save_automation(cancel_automation(janitor_id, flows))
    return Caretakers(sweeper_id, janitor_id, automation_id)


def cancel_automation(janitor_id: UUID, flows: Sequence[str] = (FLOW,)) -> Automation:
    """Describe what starts the janitor: a run of one of these flows was cancelled.

    Not by the tags of the flow run: for five minutes after it began, Prefect's events still have
    those that it began with.
    """
    return Automation(
        name=CANCEL_AUTOMATION,
        description="A sleeping flow run has no process whose hook could cancel its batches.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Cancelled"},
            match_related=ResourceSpecification({
                "prefect.resource.role": "flow",
                "prefect.resource.name": list(flows),
            }),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=janitor_id,
                job_variables=None,
                # Only this long form is rendered: the short one hands on a UUID that is no JSON.
                parameters={
                    "flow_run_id": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
                },
            )
        ],
    )


def wake_automation() -> Automation:
    """Describe an automation that resumes on the receiver's events.

    An alternative to the receiver's own resuming (``waking_receiver(…, resume=False)``). It fires
    once for an event: what is not quite asleep at that moment is left to the sweeper.
    """
    return Automation(
        name=WAKE_AUTOMATION,
        description="The receiver tells which flow runs wait for the batch.",
        trigger=EventTrigger(
            expect={
                "batchrouter.batch.completed",
                "batchrouter.batch.failed",
                "batchrouter.batch.cancelled",
                "batchrouter.batch.expired",
            },
            match=ResourceSpecification({"prefect.resource.id": "batchrouter.batch.*"}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[ResumeFlowRun()],
    )


def save_automation(automation: Automation) -> UUID:
    """Create an automation, or bring the one of its name up to date; return its id."""
    try:
        known: Automation | None = blocking(Automation.read)(name=automation.name)
    except ValueError:
        known = None
    if known is None or known.id is None:
        made: Automation = blocking(automation.create)()
        automation.id = made.id
    else:
        automation.id = known.id
        blocking(automation.update)()
    if automation.id is None:
        raise RuntimeError("Prefect gave the automation no id")
    return automation.id


def _check_pool(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            raise ConfigError(
                f"there is no work pool {name!r}; make one: prefect work-pool create {name} "
                "--type process"
            ) from None
