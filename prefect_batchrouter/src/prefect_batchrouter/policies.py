"""When a step is answered from its cache, and when it is tried again.

Correctness needs neither: a run's journal makes every step safe to repeat. The cache saves the
work after a resume, and keeps a quote that a person approves as it was shown.
"""

from typing import Any

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from batchrouter.errors import BatchrouterError
from prefect_batchrouter.planning import plan_of

_PLANNED = (
    "job",
    "credentials",
    "params",
    "run_key",
    "runs_url",
    "on_rerun",
    "at_most_usd",
)


def run_cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Name a step's result by account, run and purchase.

    Prefect's own `INPUTS` masks secrets before it hashes, so that two accounts would share a
    result. Here the key's digest is part of the name, and nothing of it can be read back.

    Returns:
        None when the job or the account cannot be read: the step then says so itself.
    """
    given = {name: parameters[name] for name in _PLANNED if parameters.get(name) is not None}
    try:
        return plan_of(**given).hashed(context.task.task_key.rpartition("-")[0])
    except (BatchrouterError, ValueError):
        return None


RUN_STEP = CacheKeyFnPolicy(cache_key_fn=run_cache_key)
"""For steps whose result stays true as long as the run is the same."""

RETRIES = 5
RETRY_DELAYS_S = [5.0, 15.0, 60.0, 180.0, 300.0]
"""About ten minutes: a router that restarts is back by then."""


def is_retryable(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Retry only what can succeed without a change of input, as the error itself says."""
    error = state.data
    return isinstance(error, BatchrouterError) and error.retryable
