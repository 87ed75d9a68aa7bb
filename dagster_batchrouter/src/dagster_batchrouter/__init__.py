"""LLM tables as Dagster assets: submitted in seconds, landed by a sensor, priced and checked.

assets = batchrouter_assets(job=Job.from_file("job.yaml"), key="labelled")

defs = dg.Definitions(
    assets=assets,
    sensors=[build_batchrouter_sensor(), build_batchrouter_cancel_sensor()],
    resources={"batchrouter": BatchrouterResource(api_key=dg.EnvVar("BATCHROUTER_API_KEY"))},
)
"""

from dagster_shared.libraries import DagsterLibraryRegistry

from dagster_batchrouter.assets import batchrouter_assets
from dagster_batchrouter.cancelling import build_batchrouter_cancel_sensor
from dagster_batchrouter.checks import BatchrouterChecks
from dagster_batchrouter.component import BatchrouterJobComponent
from dagster_batchrouter.io_manager import BatchrouterTableIOManager
from dagster_batchrouter.resources import BatchrouterResource
from dagster_batchrouter.sensors import build_batchrouter_sensor
from dagster_batchrouter.translator import BatchrouterAssetProps, DagsterBatchrouterTranslator
from dagster_batchrouter.version import __version__

__all__ = [
    "BatchrouterAssetProps",
    "BatchrouterChecks",
    "BatchrouterJobComponent",
    "BatchrouterResource",
    "BatchrouterTableIOManager",
    "DagsterBatchrouterTranslator",
    "__version__",
    "batchrouter_assets",
    "build_batchrouter_cancel_sensor",
    "build_batchrouter_sensor",
]

DagsterLibraryRegistry.register("dagster-batchrouter", __version__, is_dagster_package=False)
