"""A build shared among processes: each renders row groups of the source, this one makes the parts.

A worker stages each row group in a temporary folder. The batches come here in the source's order,
so that the parts, their cuts and their hashes are those of a build in one process.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchrouter.errors import JobError, SourceError
from batchrouter.job import Job
from batchrouter.manifest.bought import BoughtRows
from batchrouter.manifest.lines import line_shape
from batchrouter.manifest.snapshot import snapshot_schema
from batchrouter.manifest.sources import FileSource, Source, open_source
from batchrouter.manifest.staging import Staged
from batchrouter.manifest.storing import storing
from batchrouter.manifest.workers import Json, Work, Workers, process_count
from batchrouter.manifest.writing import BatchLines, BatchWriter

LEAST_ROWS = 50_000
"""A smaller table is built sooner than workers have started."""


class SharedRendering:
    """The batches of a source, rendered by workers."""

    def __init__(
        self,
        document: Json,
        source: FileSource,
        schema: pa.Schema,
        bought: BoughtRows | None,
        count: int,
    ) -> None:
        self._document = document
        self._bought = bought
        self._source = source
        self._schema = schema
        self._count = count
        self.max_output_tokens: int | None = None
        """The largest output cap of the rows' own bodies so far."""

    @classmethod
    def of(
        cls, job: Job, source: Source, schema: pa.Schema, bought: BoughtRows | None
    ) -> "SharedRendering | None":
        """Share a build if that is worth it and can be done; None otherwise."""
        if not isinstance(source, FileSource) or process_count() == 1:
            return None
        shares = source.shares()
        document = document_of(job)
        if document is None or len(shares) < 2 or sum(s.row_count for s in shares) < LEAST_ROWS:  # noqa: PLR2004 - one has nobody to share with
            return None
        return cls(document, source, schema, bought, min(process_count(), len(shares)))

    def batches(self) -> Iterator[BatchLines]:
        """Yield the batches in the source's order.

        Raises:
            BatchrouterError: What a worker raised, after the batches before it; or it died.
            StorageError: The temporary folder takes no more.
        """
        with storing(tempfile.gettempdir()):
            folder = tempfile.TemporaryDirectory(prefix="batchrouter-build-")
        setup = {
            "job": self._document,
            "files": self._source.paths,
            "folder": folder.name,
            "bought": self._bought and self._bought.to_dict(),
            "storage_options": self._source.storage_options,
        }
        units = [{"share": at} for at in range(len(self._source.shares()))]
        target = "batchrouter.manifest.shares:share_renderer"
        with folder, Workers(target, setup, self._count) as workers:
            for at, said in enumerate(workers.results(units)):
                self.max_output_tokens = max(
                    filter(None, (self.max_output_tokens, said["cap"])), default=None
                )
                yield from Staged(Path(folder.name), str(at), self._schema).batches()


def document_of(job: Job) -> Json | None:
    """Write the job as JSON from which a worker makes the very same lines; None if it cannot."""
    document = job.model_dump(mode="json")
    request = document["request"]
    if request.get("output") is not None:
        request["output"] = job.request.output_schema()
    try:
        copy = Job.model_validate(document)
    except JobError:
        return None
    return document if line_shape(copy) == line_shape(job) else None


def share_renderer(setup: Mapping[str, Any]) -> Work:
    """Open the source in a worker, and give the function that renders a share."""
    job = Job.model_validate(setup["job"])
    source = open_source(job, storage_options=setup["storage_options"])
    if not isinstance(source, FileSource) or source.paths != setup["files"]:
        raise SourceError("source: its files changed during the build; run it again")
    schema = snapshot_schema(job, source.schema)
    folder = Path(setup["folder"])
    shares = source.shares()

    bought = setup["bought"] and BoughtRows.from_dict(setup["bought"])

    def render(unit: Json) -> Json:
        writer = BatchWriter(job, schema, bought)
        share = shares[unit["share"]]
        row = share.first_row
        with Staged(folder, str(unit["share"]), schema).writer() as staged:
            for batch in source.batches_of(writer.columns, share):
                staged.write(writer.lines_of(batch, row))
                row += len(batch)
        return {"cap": writer.max_output_tokens}

    return render
