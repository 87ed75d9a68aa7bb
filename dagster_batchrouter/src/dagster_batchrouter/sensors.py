"""The sensor that lands: it looks which batches have ended, and launches the runs of their tables.

Nothing waits in a process. A tick costs what has ended since the tick before, not what is open,
and its cursor is a few hundred bytes. What gets lost on the way, such as a landing run that was
killed, is found by a slow second look over the submissions that have no table yet.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from batchrouter.errors import BatchrouterError, ConfigError
from dagster_batchrouter.plan import JobPlan, plans_in
from dagster_batchrouter.resources import BatchrouterResource
from dagster_batchrouter.tick import Cursor, Tick
from dagster_batchrouter.translator import ROLE_TAG


def build_batchrouter_sensor(
    *,
    name: str = "batchrouter_sensor",
    selection: dg.AssetSelection | None = None,
    resource_key: str = "batchrouter",
    resource: BatchrouterResource | None = None,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    quiet_seconds: float = 600.0,
    run_tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """Make the sensor that lands deferred tables; one serves a whole code location.

    Each tick reads the inbox of webhook events, if the account has one, and asks the router once
    for what ended. For each batch that did, it launches a run of its table, with the partition,
    once (by `run_key`).

    Args:
        name: Of the sensor.
        selection: The tables it lands; default: all of the code location.
        resource_key: Of the account in the definitions; the same that the tables use.
        resource: The account itself, as for `batchrouter_assets`.
        minimum_interval_seconds: Between two ticks.
        default_status: ``STOPPED`` to have it started by hand.
        quiet_seconds: How often submissions without a table are looked through.
        run_tags: Added to the runs it launches, such as a priority.

    Example:
        >>> build_batchrouter_sensor(minimum_interval_seconds=15).name
        'batchrouter_sensor'
    """
    target = selection if selection is not None else dg.AssetSelection.tag(ROLE_TAG, "table")

    @dg.sensor(
        name=name,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys=set() if resource is not None else {resource_key},
        description="Lands the tables whose batches have ended.",
    )
    def land_ended(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        plans = _selected(context, target)
        if not plans:
            return dg.SkipReason("There is no deferred batchrouter table in its selection.")
        tick = Tick(
            instance=context.instance,
            plans=plans,
            cursor=Cursor.read(context.cursor),
            quiet_s=quiet_seconds,
            run_tags=dict(run_tags or {}),
        )
        try:
            with account(resource, context.resources, resource_key) as opened:
                requests = tick.evaluate(opened)
        except BatchrouterError as error:
            if not error.retryable:
                raise
            # The old cursor stays: the next tick looks over the same time again.
            return dg.SkipReason(f"The router or the inbox cannot be read now: {error}")
        context.log.debug(tick.summary)
        return dg.SensorResult(
            run_requests=requests,
            cursor=tick.cursor.write(),
            skip_reason=None if requests else dg.SkipReason(tick.summary),
        )

    return land_ended


@contextmanager
def account(
    resource: BatchrouterResource | None, resources: Any, resource_key: str
) -> Generator[BatchrouterResource]:
    """The account of a sensor: its own, or that of the definitions."""
    if resource is None:
        yield getattr(resources, resource_key)
        return
    with resource.process_config_and_initialize_cm() as opened:
        yield opened


def _selected(context: dg.SensorEvaluationContext, target: dg.AssetSelection) -> list[JobPlan]:
    if context.repository_def is None:
        raise ConfigError("the sensor needs the definitions that it is part of")
    keys = target.resolve(context.repository_def.asset_graph)
    plans = plans_in(context.repository_def)
    return [plan for key, plan in plans.items() if key in keys and plan.submission_key is not None]
