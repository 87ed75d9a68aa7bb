"""A task instance as far as an operator sees it, without Airflow's database.

Airflow's own context cannot be had without a scheduler; the end-to-end tests use the real one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from airflow.sdk.exceptions import TaskDeferred


@dataclass
class Task:
    """One try of a task, and what it pushed to XCom."""

    dag_id: str = "nightly"
    task_id: str = "label"
    run_id: str = "manual__1"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    id: str = field(default_factory=lambda: str(uuid4()))
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    @property
    def context(self) -> Any:
        return {"ti": self, "dag": None, "run_id": self.run_id}

    def retried(self) -> "Task":
        return replace(self, try_number=self.try_number + 1, id=str(uuid4()), pushed={})

    def cleared(self) -> "Task":
        return replace(self.retried(), max_tries=self.max_tries + self.try_number)


def deferral(call: Callable[..., Any], *args: Any) -> TaskDeferred:
    """Call what defers, and return how."""
    try:
        call(*args)
    except TaskDeferred as defers:
        return defers
    raise AssertionError("it did not defer")


def fired(trigger: Any, timeout_s: float = 60) -> dict[str, Any]:
    """Run a trigger in a loop of its own until its first event, and return what that says."""

    async def first() -> Any:
        async with asyncio.timeout(timeout_s):
            events = trigger.run()
            try:
                return (await anext(events)).payload
            finally:
                await events.aclose()

    return asyncio.run(first())


def to_the_end(make: Callable[[], Any], task: Task, most: int = 10) -> Any:
    """Carry a deferrable task on as Airflow does: each time in a fresh operator."""
    try:
        return make().execute(task.context)  # a slow machine sees the batch end before it waits
    except TaskDeferred as first:
        defers = first
    for _ in range(most):
        event = fired(defers.trigger)
        try:
            return getattr(make(), defers.method_name)(task.context, event)
        except TaskDeferred as again:
            defers = again
    raise AssertionError(f"it deferred {most} times")
