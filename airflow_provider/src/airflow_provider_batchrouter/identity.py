"""What Airflow calls a run and an attempt: the names under which a batch is bought once."""

from collections.abc import Mapping
from typing import Any


def run_key_of(context: Mapping[str, Any], *, with_task: bool) -> str:
    """Name this execution, the same for each of its tries.

    Args:
        context: Of the task.
        with_task: Whether tasks of one DAG run are runs of their own; the steps of one job
            (quote, submit, land) share theirs.

    Returns:
        ``dag/run`` or ``dag/task/run``, and the map index of a mapped task.
    """
    ti = context["ti"]
    names = [ti.dag_id, *([ti.task_id] if with_task else []), ti.run_id]
    map_index = getattr(ti, "map_index", -1)
    if map_index is not None and map_index >= 0:
        names.append(str(map_index))
    return "/".join(names)


def attempt_of(context: Mapping[str, Any]) -> str:
    """Name this try: Airflow gives each a new id, and keeps it while the task is deferred."""
    ti = context["ti"]
    return f"airflow:{ti.id}:{ti.try_number}"


def demand_of(context: Mapping[str, Any]) -> str:
    """Name what a person asked for: the first run, or a clear; automatic retries share it.

    A clear raises `max_tries`, and a retry does not.
    """
    ti = context["ti"]
    names = (ti.dag_id, ti.task_id, ti.run_id, getattr(ti, "map_index", -1), ti.max_tries)
    return "airflow:" + "/".join(str(name) for name in names)
