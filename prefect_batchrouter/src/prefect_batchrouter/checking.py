"""What is worth a warning before a flow run buys: places that another host would not find."""

from typing import Any

from prefect import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem
from prefect.logging import get_run_logger

from prefect_batchrouter.planning import Plan

SWEEPER = "sweep-suspended-runs/batchrouter"
"""The name under which `prefect-batchrouter setup` deploys the sweeper."""

_ONE_HOST = {"process"}
"""Kinds of work pools whose runs all start on the hosts of their workers."""


def has_sweeper() -> bool:
    """True when this server has a sweeper that is not paused."""
    with get_client(sync_client=True) as client:
        try:
            return not client.read_deployment_by_name(SWEEPER).paused
        except ObjectNotFound:
            return False


def check_places(plan: Plan) -> None:
    """Warn when the next attempt may start on a host that cannot see what this one leaves.

    Purchases are safe all the same: their key does not hang on the folder.
    """
    context = FlowRunContext.get()
    pool_type = (
        _pool_type(context.flow_run.work_pool_name) if context and context.flow_run else None
    )
    if context is None or pool_type is None or pool_type in _ONE_HOST:
        return
    told: list[str] = []
    storage: Any = context.result_store.result_storage
    if storage is None or isinstance(storage, LocalFileSystem):
        told.append(
            "results are kept on a local disk (set PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK, such as "
            "s3-bucket/results)"
        )
    if "://" not in plan.settings.runs_url or plan.settings.runs_url.startswith("file:"):
        told.append("runs_url is a local folder (set one that all hosts reach, such as s3://…)")
    for problem in told:
        get_run_logger().warning(
            "%s, and the work pool is of type %r: a flow run that is resumed elsewhere will not "
            "find them and does that work again",
            problem,
            pool_type,
        )


def _pool_type(name: str | None) -> str | None:
    if name is None:
        return None
    with get_client(sync_client=True) as client:
        try:
            return client.read_work_pool(name).type
        except ObjectNotFound:
            return None
