"""Why a task was killed, and so whether its batch shall be cancelled.

Marked failed, skipped or successful: nobody will land the batch, so it is cancelled. Cleared:
the next try will, so it is not. A worker or a triggerer that shuts down: nobody decided
anything, so it is not either.
"""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)

_DECIDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


def is_decided(dag_id: str, task_id: str, run_id: str, map_index: int) -> bool | None:
    """Ask Airflow for the state of a task instance.

    Returns:
        True when it has ended, by a person's decision; False when it goes on or will be tried
        again; None when Airflow does not tell.
    """
    from airflow.sdk.execution_time.task_runner import (  # noqa: PLC0415 - where tasks run
        RuntimeTaskInstance,
    )

    try:
        told = RuntimeTaskInstance.get_task_states(
            dag_id=dag_id, task_ids=[task_id], run_ids=[run_id]
        )
    except Exception:  # noqa: BLE001 - of three Airflow versions, over a socket that may be gone
        _log.warning("Airflow does not tell the state of %s.%s", dag_id, task_id, exc_info=True)
        return None
    return _decided(told.get(run_id, {}), task_id, map_index)


def _decided(states: Mapping[str, Any], task_id: str, map_index: int) -> bool | None:
    name = task_id if map_index < 0 else f"{task_id}_{map_index}"
    if name not in states:
        return None
    state = states[name]
    return str(getattr(state, "value", state)) in _DECIDED
