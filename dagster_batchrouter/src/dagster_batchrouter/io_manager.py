"""Hands landed tables to downstream inputs, whole or by partition, as the frame they ask for.

It only reads: the table's own step streams its rows into the sink, and no value passes through
Dagster. Where a partition's rows are is what its materialization says.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from batchrouter.errors import ConfigError, SourceError
from dagster_batchrouter.history import last_materializations, text_of

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_URI = "dagster/uri"
_ALLOW_MISSING = "allow_missing_partitions"
"""The metadata of an input by which Dagster's own IO managers pass over absent partitions."""


class BatchrouterTableIOManager(dg.ConfigurableIOManager):
    """Reads Parquet tables that jobs landed; give its key to `batchrouter_assets`.

    An input gets the rows of the partitions that its asset depends on, as one table. Its
    annotation says as what: `polars.DataFrame` or `polars.LazyFrame`, `pandas.DataFrame`,
    `pyarrow.Table` (also without annotation), or `pyarrow.dataset.Dataset`. The lazy ones read
    only what is asked of them.

    A partition that is not landed is an error, unless the input's metadata has
    ``allow_missing_partitions: True``.

    Example:
        >>> @dg.asset
        ... def report(labelled: "pl.LazyFrame") -> None: ...          # doctest: +SKIP
    """

    allow_missing_partitions: bool = Field(
        default=False, description="Pass over partitions that are not landed, in every input."
    )

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the rows of an input's partitions.

        Raises:
            SourceError: A partition is not landed, or its table is no Parquet.
            ConfigError: The input asks for what there is no way to give.
        """
        partitions: list[str | None] = [None]
        if context.has_asset_partitions:
            partitions = list(context.asset_partition_keys)
        of_input = (context.definition_metadata or {}).get(_ALLOW_MISSING)
        allows_missing = self.allow_missing_partitions if of_input is None else bool(of_input)
        files = [
            file
            for partition in partitions
            if (file := _file_of(context, partition, allows_missing=allows_missing)) is not None
        ]
        return _as_asked(_dataset(files), context.dagster_type.typing_type)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Refuse: tables are written by their jobs.

        Raises:
            ConfigError: Always.
        """
        del obj
        raise ConfigError(
            f"{context.asset_key.to_user_string()}: BatchrouterTableIOManager only reads what jobs"
            " have landed; give this asset another io_manager_key"
        )


def _file_of(
    context: dg.InputContext, partition: str | None, *, allows_missing: bool
) -> str | None:
    records = last_materializations(context.instance, context.asset_key, partition)
    location = text_of(records[0], _URI) if records else None
    if location is None:
        if allows_missing:
            return None
        of = f" partition {partition!r} of" if partition is not None else ""
        raise SourceError(
            f"{of.strip()} {context.asset_key.to_user_string()} is not landed. Wait for its "
            f"batch, or give the input the metadata {_ALLOW_MISSING}: True".strip()
        )
    if not location.endswith(".parquet"):
        raise SourceError(
            f"{context.asset_key.to_user_string()} is at {location}, which is no Parquet file: read"
            " it with the library of its format"
        )
    return location


def _dataset(files: list[str]) -> "ds.Dataset":
    import pyarrow.dataset as ds  # noqa: PLC0415 - costs a code location its load time
    from upath import UPath  # noqa: PLC0415 - as above

    from batchrouter import Settings  # noqa: PLC0415 - as above

    options = dict(Settings.from_env().storage_options)
    paths = [UPath(each, **(options if "://" in each else {})) for each in files]
    if not paths:
        raise SourceError("none of the input's partitions is landed")
    return ds.dataset([each.path for each in paths], format="parquet", filesystem=paths[0].fs)


def _as_asked(dataset: "ds.Dataset", asked: Any) -> Any:
    """Turn it into what the input's annotation names, importing only that library."""
    name = f"{getattr(asked, '__module__', '').partition('.')[0]}.{getattr(asked, '__name__', '')}"
    if name == "polars.LazyFrame":
        import polars as pl  # noqa: PLC0415 - only where it is asked for

        return pl.scan_pyarrow_dataset(dataset)
    if name == "polars.DataFrame":
        import polars as pl  # noqa: PLC0415 - as above

        return pl.from_arrow(dataset.to_table())
    if name == "pandas.DataFrame":
        return dataset.to_table().to_pandas()
    if name == "pyarrow.Dataset":
        return dataset
    if name == "pyarrow.Table" or asked in {None, Any}:
        return dataset.to_table()
    raise ConfigError(
        f"an input cannot be {asked!r}: annotate it as polars.LazyFrame, polars.DataFrame,"
        " pandas.DataFrame, pyarrow.Table or pyarrow.dataset.Dataset"
    )
