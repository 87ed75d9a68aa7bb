"""OpenLineage: the table that was read, the table that was written, what it cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


class TableLineage:
    """Mixin of tasks that land a table; without the OpenLineage provider nothing is called."""

    landed: Mapping[str, Any] | None = None
    """The receipt, once this process has landed the table."""
    source_location: str | None = None
    table_location: str | None = None

    def get_openlineage_facets_on_start(self) -> "OperatorLineage[Any, Any]":
        """The source, as far as it is known before the run is opened."""
        return _lineage(self.source_location, None, None)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> "OperatorLineage[Any, Any]":
        """Source and table, with rows and cost."""
        del task_instance
        return _lineage(self.source_location, self.table_location, self.landed)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> "OperatorLineage[Any, Any]":
        """As on completion: a table may be landed and its share of failed rows too large."""
        del task_instance
        return _lineage(self.source_location, self.table_location, self.landed)


def _lineage(
    source: str | None, table: str | None, receipt: Mapping[str, Any] | None
) -> "OperatorLineage[Any, Any]":
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
    namespace, name = _dataset(table or receipt["location"])
    output = OutputDataset(namespace, name, outputFacets={"outputStatistics": rows})
    outputs: list[Any] = [output]
    return OperatorLineage(
        inputs=inputs, outputs=outputs, run_facets={"batchrouter": _cost_facet(receipt)}
    )


def _dataset(location: str) -> tuple[str, str]:
    """Namespace and name by OpenLineage's rules: ``s3://bucket`` and the path below it.

    Example:
        >>> _dataset("s3://lake/tickets/day=1"), _dataset("/lake/tickets")
        (('s3://lake', 'tickets/day=1'), ('file', '/lake/tickets'))
    """
    if "://" not in location or location.startswith("file://"):
        return "file", str(Path(location.removeprefix("file://")).expanduser().resolve())
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.lstrip("/") or "/"


def _cost_facet(receipt: Mapping[str, Any]) -> Any:
    import attr  # noqa: PLC0415 - OpenLineage's own
    from airflow.providers.common.compat.openlineage.facet import RunFacet  # noqa: PLC0415 - optional

    fields = ("job", "run_key", "outcome", "quoted_usd", "settled_usd", "rows", "batch_count")
    facet = attr.make_class("BatchrouterRunFacet", list(fields), bases=(RunFacet,), kw_only=True)
    return facet(**{name: receipt[name] for name in fields})
