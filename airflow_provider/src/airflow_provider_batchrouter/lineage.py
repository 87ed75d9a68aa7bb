"""OpenLineage: the table that was read, the table that was written, what it cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_batchrouter.landed import asset_uri

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


class TableLineage:
    """Mixin of tasks that land a table; without the OpenLineage provider nothing is called."""

    landed: Mapping[str, Any] | None = None
    """The receipt, once this process has landed the table."""
    source_location: str | None = None

    def get_openlineage_facets_on_start(self) -> "OperatorLineage[Any, Any]":
        """The source, as far as it is known before the run is opened."""
        return _lineage(self.source_location, None)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> "OperatorLineage[Any, Any]":
        """Source and table, with rows and cost."""
        del task_instance
        return _lineage(self.source_location, self.landed)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> "OperatorLineage[Any, Any]":
        """As on completion: a table may be landed and its share of failed rows too large."""
        del task_instance
        return _lineage(self.source_location, self.landed)


def _lineage(source: str | None, receipt: Mapping[str, Any] | None) -> "OperatorLineage[Any, Any]":
    from airflow.providers.common.compat.openlineage.facet import (  # noqa: PLC0415 - optional
        InputDataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import (  # noqa: PLC0415 - optional
        OperatorLineage,
    )

    inputs: list[Any] = [InputDataset(*_dataset(source))] if source else []
    if receipt is None:
        return OperatorLineage(inputs=inputs)
    rows = OutputStatisticsOutputDatasetFacet(rowCount=int(receipt["row_count"]))
    namespace, name = _dataset(receipt["location"])
    output = OutputDataset(namespace, name, outputFacets={"outputStatistics": rows})
    outputs: list[Any] = [output]
    return OperatorLineage(
        inputs=inputs, outputs=outputs, run_facets={"batchrouter": _cost_facet(receipt)}
    )


def _dataset(location: str) -> tuple[str, str]:
    """Namespace and name by OpenLineage's rules: ``s3://bucket`` and the path below it."""
    scheme, _, rest = asset_uri(location).partition("://")
    host, _, path = rest.partition("/")
    if scheme == "file":
        return "file", f"/{path}"
    return f"{scheme}://{host}", path or "/"


def _cost_facet(receipt: Mapping[str, Any]) -> Any:
    import attr  # noqa: PLC0415 - OpenLineage's own
    from airflow.providers.common.compat.openlineage.facet import RunFacet  # noqa: PLC0415 - optional

    fields = ("job", "run_key", "outcome", "quoted_usd", "settled_usd", "rows", "batch_count")
    facet = attr.make_class("BatchrouterRunFacet", list(fields), bases=(RunFacet,), kw_only=True)
    return facet(**{name: receipt[name] for name in fields})
