"""A job in days of a few tickets, a router of its own process, and a Dagster instance on SQLite."""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_batchrouter import (
    BatchrouterResource,
    batchrouter_assets,
    build_batchrouter_cancel_sensor,
    build_batchrouter_sensor,
)

from batchrouter import Client, Job
from batchrouter.run import look_for_ended
from batchrouter.testing import RunningRouter, running_router

collect_ignore = ["real_definitions.py"]
"""Loaded by the Dagster that a test starts, not by pytest."""

DAYS = dg.StaticPartitionsDefinition([f"2026-11-{day:02}" for day in range(1, 11)])

MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    lanes = [lane("gpt-4o-mini"), lane("half-fails", failure_rate=0.5), lane("slow", latency_s=25)]
    with running_router(tmp_path_factory.mktemp("router"), config={"lanes": lanes}) as running:
        yield running


def lane(model: str, **options: Any) -> dict[str, Any]:
    """A simulated lane that serves one model."""
    return {
        "provider": f"simulated-{model}",
        "region": "global",
        "privacy_tiers": ["standard"],
        "capacity_items": 5_000_000,
        "options": options,
        "models": [
            {
                "name": model,
                "input_usd_per_mtok": "0.10",
                "output_usd_per_mtok": "0.40",
                "tasks": ["responses"],
            }
        ],
    }


@pytest.fixture
def resource(router: RunningRouter, tmp_path: Path) -> BatchrouterResource:
    return BatchrouterResource(
        base_url=router.base_url,
        api_key=router.api_key,
        runs_url=str(tmp_path / "runs"),
        poll_interval=0.5,
    )


@pytest.fixture
def client(resource: BatchrouterResource) -> Iterator[Client]:
    with resource.get_client() as opened:
        yield opened


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job over files of tickets, one a day; fields may be changed."""
    for day in DAYS.get_partition_keys():
        write_tickets(tmp_path / "tickets" / f"{day}.csv", day)

    def make(**changes: Any) -> Job:
        return Job.model_validate({**ticket_job(tmp_path), **changes})

    return make


def ticket_job(folder: Path) -> dict[str, Any]:
    return {
        "name": "label-tickets",
        "params": {"day": None},
        "source": str(folder / "tickets" / "${params.day}.csv"),
        "key": "ticket_id",
        "request": {
            "kind": "chat",
            "user": "{body}",
            "output": {
                "intent": {"type": "string", "enum": ["billing", "bug"]},
                "urgent": {"type": "boolean"},
            },
            "parameters": {"max_output_tokens": 32},
        },
        "route": {"models": ["gpt-4o-mini"]},
        "budget": "1.00",
        "sink": str(folder / "labelled"),
        "keep": ["subject"],
    }


def write_tickets(path: Path, day: str, rows: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket_id", "subject", "body"])
        for row in range(rows):
            writer.writerow([f"{day}-{row}", f"subject {row}", f"billing bug {row} of {day}"])


def definitions(
    job: Job,
    resource: BatchrouterResource,
    *,
    more: list[Any] | None = None,
    quiet_seconds: float = 600,
    **options: Any,
) -> dg.Definitions:
    options.setdefault("retry_policy", None)  # a mistake of ours is not to be waited for
    return dg.Definitions(
        assets=[*batchrouter_assets(job=job, key="lake/labelled", **options), *(more or [])],
        sensors=[
            build_batchrouter_sensor(quiet_seconds=quiet_seconds),
            build_batchrouter_cancel_sensor(),
        ],
        resources={"batchrouter": resource},
    )


def launch(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    *keys: str,
    partition: str | None = None,
    tags: dict[str, str] | None = None,
    raise_on_error: bool = True,
) -> dg.ExecuteInProcessResult:
    """Run assets in this process, as a launched run would."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(key.split("/")) for key in keys],
        partition_key=partition,
        tags=tags,
        raise_on_error=raise_on_error,
    )


def failure_of(result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """Why the one failed step failed: its message and metadata; it was not retried."""
    assert not [each for each in result.all_events if each.is_step_up_for_retry]
    [event] = [each for each in result.all_events if each.is_step_failure]
    data = event.step_failure_data
    told = data.user_failure_data
    assert told is not None, data.error
    return str(told.description), {name: each.value for name, each in told.metadata.items()}


class Ticking:
    """The landing sensor, evaluated as the daemon does; its launches carried out in process."""

    def __init__(self, defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self.defs, self.instance = defs, instance
        self.cursor: str | None = None
        self.launched: set[str] = set()

    def tick(self) -> list[dg.RunRequest]:
        """Evaluate it; return what it asks for that it has not asked before, as by run_key."""
        with dg.build_sensor_context(
            instance_ref=self.instance.get_ref(),
            definitions=self.defs,
            resources=dict(self.defs.resources or {}),
            cursor=self.cursor,
        ) as context:
            data = self.defs.resolve_sensor_def("batchrouter_sensor").evaluate_tick(context)
        self.cursor = data.cursor if data.cursor is not None else self.cursor
        fresh = [each for each in data.run_requests or [] if each.run_key not in self.launched]
        self.launched |= {str(each.run_key) for each in fresh}
        return fresh

    def launch(
        self, request: dg.RunRequest, *, raise_on_error: bool = True
    ) -> dg.ExecuteInProcessResult:
        assert request.asset_selection
        return launch(
            self.defs,
            self.instance,
            *(each.to_user_string() for each in request.asset_selection),
            tags=dict(request.tags),
            partition=request.partition_key,
            raise_on_error=raise_on_error,
        )

    def until(self, count: int, timeout_s: float = 60) -> list[dg.RunRequest]:
        """Tick until so many landings were asked for."""
        asked: list[dg.RunRequest] = []
        give_up_at = time.monotonic() + timeout_s
        while len(asked) < count:
            assert time.monotonic() < give_up_at, f"{len(asked)} of {count} landings were asked for"
            asked += self.tick()
            time.sleep(0.2)
        return asked


def batch_count(client: Client) -> int:
    """How many batches the runs of this test's namespace have at the router, once all ended."""
    give_up_at = time.monotonic() + 60
    while not all(each.is_terminal for each in client.list_batches(limit=1000).data):
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
    return len(look_for_ended(client).ended)


def metadata_of(
    instance: dg.DagsterInstance, key: str, partition: str | None = None
) -> dict[str, Any]:
    """The metadata of an asset's newest materialization, as plain values."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            dg.AssetKey(key.split("/")), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    ).records
    assert records
    assert records[0].asset_materialization
    return {name: each.value for name, each in records[0].asset_materialization.metadata.items()}
