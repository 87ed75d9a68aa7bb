"""From the table to a manifest in the run folder; nothing is sent."""

from typing import TYPE_CHECKING

from batchrouter.killpoints import reached
from batchrouter.run.context import RunContext
from batchrouter.run.events import Built, Pinned
from batchrouter.run.folder import storage_errors
from batchrouter.run.outcome import landing_identity, sink_of
from batchrouter.run.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from batchrouter.manifest.built import BuiltManifest


def build(context: RunContext) -> None:
    """Write the manifest and the row snapshot, and journal their names.

    Raises:
        SourceError: The table cannot be read.
        SinkError: The job is incremental, and its table cannot be read or compared.
        ManifestError: A row cannot become a request; nothing of the build is kept.
        StorageError: The run folder takes no more; nothing of the build is kept.
    """
    if context.state.manifest is not None:
        return
    generation = context.state.generation
    reached("build.before")
    with storage_errors("writing the manifest"):
        built = _built_on_spark(context) if context.is_on_spark else _built_here(context)
    reached("build.after")
    context.tell(Progress("build", built.row_count, built.row_count, "rows"))
    context.journal.append(
        Built(generation=generation, manifest=built.to_dict()),
        still=lambda state: state.generation == generation and state.manifest is None,
    )


def _built_on_spark(context: RunContext) -> "BuiltManifest":
    from batchrouter.spark.building import built_on_spark  # noqa: PLC0415 - loads pyarrow
    from batchrouter.spark.session import session_of  # noqa: PLC0415 - as above

    return built_on_spark(
        context.job,
        spark=session_of(context.job),
        fs=context.folder.fs,
        folders=(context.folder.ensure("manifest"), context.folder.ensure("rows")),
        token=context.folder.new_name(str(context.state.generation)),
        limit=context.limit,
    )


def _built_here(context: RunContext) -> "BuiltManifest":
    from batchrouter.manifest.build import build_manifest  # noqa: PLC0415 - loads pyarrow

    generation = context.state.generation
    return build_manifest(
        context.job,
        fs=context.folder.fs,
        manifest_dir=context.folder.ensure("manifest"),
        rows_dir=context.folder.ensure("rows"),
        token=context.folder.new_name(str(generation)),
        on_progress=lambda rows: context.tell(Progress("build", rows, None, "rows")),
        limit=context.limit,
        bought=_bought(context),
        storage_options=context.settings.storage_options,
        source_version=context.state.source_version,
        on_source_version=lambda version: context.journal.append(
            Pinned(generation=generation, source_version=version)
        ),
    )


def _bought(context: RunContext) -> "Iterator[pa.RecordBatch] | None":
    """Ask the table what it holds; a trial of a few rows lands elsewhere, and is bought whole."""
    if not context.job.incremental or context.limit is not None:
        return None
    return sink_of(context).succeeded(landing_identity(context), context.job.key_columns)
