"""A process that is told to end: whether its run is cancelled, within the few seconds left."""

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any, cast

from airflow_provider_batchrouter.hooks import BatchrouterHook

_log = logging.getLogger(__name__)

_MOST_S = 3.0
"""The supervisor sends SIGKILL five seconds after SIGTERM."""


def cancel_if_decided(
    names: Mapping[str, str], attempt: str | None, *, conn_id: str, on_timeout: str
) -> None:
    """Cancel a run whose task a person has ended, or whose execution timeout asks for it.

    Called by a signal handler: the main thread stands still somewhere in the middle, perhaps
    with a lock, so a thread does the work, with connections of its own.
    """
    timed_out = _is_execution_timeout()
    worker = threading.Thread(
        target=_cancel,
        args=(names, attempt, conn_id, on_timeout if timed_out else None),
        daemon=True,
    )
    worker.start()
    worker.join(_MOST_S if not timed_out else None)


def _is_execution_timeout() -> bool:
    from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - rarely needed
        AirflowTaskTimeout,
    )

    return isinstance(sys.exc_info()[1], AirflowTaskTimeout)


def _cancel(
    names: Mapping[str, str], attempt: str | None, conn_id: str, on_timeout: str | None
) -> None:
    from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - rarely needed
    from batchrouter.run import cancel_run  # noqa: PLC0415 - rarely needed

    if on_timeout is None and not _is_ended_by_a_person():
        _log.info("the task will be tried again, or its worker shuts down: its batches go on")
        return
    if on_timeout == "leave":
        _log.info("the execution timeout is over: the batches go on at the router")
        return
    try:
        cancelled = cancel_run(
            names["job"],
            names["run_key"],
            settings=BatchrouterHook(conn_id).settings,
            reason="the running task was ended",
            attempt=attempt,
            grace_s=0,
        )
        _log.info("cancelled the run" if cancelled else "there was nothing to cancel")
    except BatchrouterError as error:
        _log.error("the run was not cancelled: %s", error)


def _is_ended_by_a_person() -> bool:
    from airflow.sdk import get_current_context  # noqa: PLC0415 - where tasks run

    from airflow_provider_batchrouter.fate import is_decided  # noqa: PLC0415 - rarely needed

    ti: Any = cast("dict[str, Any]", get_current_context())["ti"]
    decided = is_decided(ti.dag_id, ti.task_id, ti.run_id, getattr(ti, "map_index", -1))
    return decided is True
