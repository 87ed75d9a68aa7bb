"""LLM tables as Dagster assets: submitted in seconds, landed by a sensor, priced and checked.

assets = batchrouter_assets(job=Job.from_file("job.yaml"), key="labelled")

defs = dg.Definitions(
    assets=assets,
    sensors=[build_batchrouter_sensor(), build_batchrouter_cancel_sensor()],
    resources={"batchrouter": BatchrouterResource(api_key=dg.EnvVar("BATCHROUTER_API_KEY"))},
)

The names load on first use: a code location pays for the component only if it has one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagster_shared.libraries import DagsterLibraryRegistry

from dagster_batchrouter.version import __version__

if TYPE_CHECKING:
    from dagster_batchrouter.assets import batchrouter_assets
    from dagster_batchrouter.cancelling import build_batchrouter_cancel_sensor
    from dagster_batchrouter.checks import BatchrouterChecks
    from dagster_batchrouter.component import BatchrouterJobComponent
    from dagster_batchrouter.io_manager import BatchrouterTableIOManager
    from dagster_batchrouter.resources import BatchrouterResource
    from dagster_batchrouter.sensors import build_batchrouter_sensor
    from dagster_batchrouter.translator import BatchrouterAssetProps, DagsterBatchrouterTranslator

_HOMES = {
    "BatchrouterAssetProps": "dagster_batchrouter.translator",
    "BatchrouterChecks": "dagster_batchrouter.checks",
    "BatchrouterJobComponent": "dagster_batchrouter.component",
    "BatchrouterResource": "dagster_batchrouter.resources",
    "BatchrouterTableIOManager": "dagster_batchrouter.io_manager",
    "DagsterBatchrouterTranslator": "dagster_batchrouter.translator",
    "batchrouter_assets": "dagster_batchrouter.assets",
    "build_batchrouter_cancel_sensor": "dagster_batchrouter.cancelling",
    "build_batchrouter_sensor": "dagster_batchrouter.sensors",
}

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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dagster_batchrouter' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
