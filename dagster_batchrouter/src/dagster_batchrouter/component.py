"""A job as YAML for `dg`: its assets, its checks and its sensors from one `defs.yaml`.

The job stays in a file of its own: Dagster renders `defs.yaml` with Jinja, and a prompt must not
be rendered by anybody.
"""

from typing import Any, Literal

import dagster as dg
from dagster.components import scaffold_component
from pydantic import BaseModel, Field

from dagster_batchrouter.assets import batchrouter_assets
from dagster_batchrouter.cancelling import build_batchrouter_cancel_sensor
from dagster_batchrouter.checks import BatchrouterChecks
from dagster_batchrouter.plan import WaitMode
from dagster_batchrouter.resources import BatchrouterResource
from dagster_batchrouter.sensors import build_batchrouter_sensor
from dagster_batchrouter.translator import BatchrouterAssetProps, DagsterBatchrouterTranslator

_JOB_FILE = "job.yaml"

_JOB = """\
# What to ask for each row of a table. Try it with
#
#   batchrouter check job.yaml
#   batchrouter run job.yaml --run-key try --limit 20
#
name: {name}
source: data/tickets.csv        # relative to the folder that Dagster runs in, or any URL
key: ticket_id
request:
  kind: chat
  system: You label support tickets.
  user: "Subject: {{subject}}\\n\\n{{body}}"
  output:
    intent: {{type: string, enum: [billing, bug, how_to]}}
    urgent: {{type: boolean}}
  parameters: {{max_output_tokens: 64, temperature: 0}}
route: {{models: [gpt-4o-mini, claude-haiku-4]}}
budget: 5.00                    # USD: the most that a run may cost
sink: data/{name}
keep: [subject]
"""


class BatchrouterJobParams(BaseModel):
    """What `dg scaffold defs` asks for."""

    asset_key: str = Field(default="labelled", description="The key of the table, such as lake/t.")


class BatchrouterJobScaffolder(dg.Scaffolder[BatchrouterJobParams]):
    """Writes a `defs.yaml`, and a job beside it that runs as it stands."""

    @classmethod
    def get_scaffold_params(cls) -> type[BatchrouterJobParams]:
        """Name the model of the parameters."""
        return BatchrouterJobParams

    def scaffold(self, request: dg.ScaffoldRequest[BatchrouterJobParams]) -> None:
        """Write both files."""
        key = request.params.asset_key if request.params else "labelled"
        name = key.replace("/", "-").replace("_", "-")
        (request.target_path / _JOB_FILE).write_text(_JOB.format(name=name), encoding="utf-8")
        scaffold_component(request, {"job": _JOB_FILE, "asset": {"key": key}, "mode": "deferred"})


class ConnectionModel(dg.Model, dg.Resolvable):
    """The account; what is left out comes from ``BATCHROUTER_…`` variables when a step runs."""

    base_url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    runs_url: str | None = None
    namespace: str | None = None
    max_run_usd: str | None = None
    inbox_url: str | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = Field(default=None, repr=False)
    request_timeout: float | None = None
    request_max_retries: int | None = None
    request_retry_delay: float | None = None
    poll_interval: float | None = None


class ChecksModel(dg.Model, dg.Resolvable):
    """The table's checks, as `BatchrouterChecks`."""

    enabled: bool = True
    max_failed_share: float = 0.01
    blocking: bool = False
    severity: Literal["ERROR", "WARN"] = "ERROR"


@dg.scaffold_with(BatchrouterJobScaffolder)
class BatchrouterJobComponent(dg.Component, dg.Model, dg.Resolvable):
    """An LLM batch job over a table: bought once, landed by a sensor, checked.

    Example:
        .. code-block:: yaml

            type: dagster_batchrouter.BatchrouterJobComponent
            attributes:
              job: job.yaml
              asset:
                key: lake/labelled
                partitions_def: {type: daily, start_date: "2026-11-01"}
              connection:
                runs_url: s3://lake/_runs
    """

    job: str = Field(description="The job's file, from the folder of this one.")
    asset: dg.ResolvedAssetSpec = Field(
        description=(
            "The table: key, deps, partitions_def, group_name, owners, … An automation_condition"
            " is that of what buys: of the submission, where there is one."
        )
    )
    mode: Literal["deferred", "blocking"] = Field(
        default="deferred", description="Who waits for the batch: the sensor, or the step."
    )
    partition_params: dict[str, str] | None = Field(
        default=None, description='Parameters by partition, such as {day: "{start:%Y-%m-%d}"}.'
    )
    checks: ChecksModel = Field(default_factory=ChecksModel, description="The table's checks.")
    connection: ConnectionModel = Field(
        default_factory=ConnectionModel, description="The account, if resource_key is not given."
    )
    resource_key: str | None = Field(
        default=None, description="The account as a BatchrouterResource of the project."
    )
    sensor: bool = Field(
        default=True,
        description="Land by a sensor of its own; false with build_batchrouter_sensor() for all.",
    )
    sensor_interval_seconds: int = Field(default=30, ge=1, description="Between its ticks.")
    cancel_on_termination: bool = Field(
        default=True, description="Terminating a run in Dagster cancels its batch."
    )
    on_rerun: Literal["resume", "rebuy"] = Field(
        default="resume", description="What launching a partition that has ended does."
    )
    wait: WaitMode = Field(default="both", description="How a waiting step watches its batch.")
    pool: str | None = Field(default=None, description="Bounds how many steps run at once.")
    single_run_backfill: bool = Field(
        default=False, description="Submit a backfill's whole range in one run."
    )
    io_manager_key: str | None = Field(default=None, description="Loads the table downstream.")

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Describe the component for `dg list components`."""
        return dg.ComponentTypeSpec(
            description="An LLM batch job over a table: bought once, landed by a sensor, checked.",
            tags=["llm", "batch"],
        )

    def get_asset_spec(self, props: BatchrouterAssetProps) -> dg.AssetSpec:
        """Return the spec of one asset; override it to shape keys, groups or tags."""
        return _shaped(DagsterBatchrouterTranslator().get_asset_spec(props), self.asset, props)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the assets with their checks, and the sensors."""
        resource = None if self.resource_key else self._resource()
        assets = batchrouter_assets(
            job=context.path / self.job
            if context.path.is_dir()
            else context.path.parent / self.job,
            key=self.asset.key,
            mode=self.mode,
            partitions_def=self.asset.partitions_def,
            partition_params=self.partition_params,
            deps=self.asset.deps,
            translator=_ComponentTranslator(self),
            checks=BatchrouterChecks(**self.checks.model_dump()),
            resource_key=self.resource_key or "batchrouter",
            resource=resource,
            backfill_policy=(dg.BackfillPolicy.single_run() if self.single_run_backfill else None),
            pool=self.pool,
            io_manager_key=self.io_manager_key,
            on_rerun=self.on_rerun,
            wait=self.wait,
            cancel_on_termination=self.cancel_on_termination,
        )
        return dg.Definitions(assets=assets, sensors=self._sensors(assets, resource))

    def _resource(self) -> BatchrouterResource:
        given = self.connection.model_dump(exclude_none=True)
        return BatchrouterResource(**given)

    def _sensors(
        self, assets: list[dg.AssetsDefinition], resource: BatchrouterResource | None
    ) -> list[dg.SensorDefinition]:
        if self.mode == "blocking" or not self.sensor:
            return []
        account: dict[str, Any] = {"resource": resource}
        if self.resource_key:
            account["resource_key"] = self.resource_key
        # Named by the asset, so that two instances in a project do not clash.
        name = "__".join(self.asset.key.path).replace("-", "_").replace(".", "_")
        sensors = [
            build_batchrouter_sensor(
                name=f"{name}_sensor",
                selection=dg.AssetSelection.assets(assets[-1].key),
                minimum_interval_seconds=self.sensor_interval_seconds,
                **account,
            )
        ]
        if self.cancel_on_termination:
            sensors.append(
                build_batchrouter_cancel_sensor(
                    name=f"{name}_cancel_sensor", tables=[assets[-1].key], **account
                )
            )
        return sensors


class _ComponentTranslator(DagsterBatchrouterTranslator):
    """Asks the component, so that a subclass of it may override one method."""

    def __init__(self, component: BatchrouterJobComponent) -> None:
        self._component = component

    def get_asset_spec(self, props: BatchrouterAssetProps) -> dg.AssetSpec:
        return self._component.get_asset_spec(props)


def _shaped(spec: dg.AssetSpec, wanted: dg.AssetSpec, props: BatchrouterAssetProps) -> dg.AssetSpec:
    """Lay what the YAML says of the table over the spec of one of its assets."""
    is_table = props.role == "table"
    changes: dict[str, Any] = {}
    if wanted.group_name is not None:
        changes["group_name"] = wanted.group_name
    if wanted.owners:
        changes["owners"] = wanted.owners
    if is_table and wanted.description is not None:
        changes["description"] = wanted.description
    if is_table and wanted.freshness_policy is not None:
        changes["freshness_policy"] = wanted.freshness_policy
    if wanted.code_version is not None:
        changes["code_version"] = wanted.code_version
    buys = not is_table or props.mode == "blocking"
    if buys and wanted.automation_condition is not None:
        changes["automation_condition"] = wanted.automation_condition
    return spec.replace_attributes(**changes).merge_attributes(
        tags=dict(wanted.tags), metadata=dict(wanted.metadata) if is_table else {}
    )
